-- The providers of the scheduler's configuration, and the reason of each that did not answer when it was queried last.
-- Written with the offers (0022): a provider that was not queried for a while is not configured any more.
create table provider (
    name        text primary key,
    -- Null: it answered.
    unreachable text,
    seen_at     timestamptz not null default now()
);
grant select, insert, update, delete on provider to attune_platform;
