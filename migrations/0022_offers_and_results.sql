-- What the scheduler's provider offers, as it said last: so that the api can tell what a job would get, without a
-- connection to any provider. An offer that was not said for a while is not there any more.
create table offer (
    provider           text not null,
    name               text not null,
    memory             bigint not null,
    -- Runs at the same time.
    slots              integer not null,
    threads            integer not null,
    micro_usd_per_hour bigint not null,
    seen_at            timestamptz not null default now(),
    primary key (provider, name)
);
grant select, insert, update, delete on offer to attune_platform;

-- The file of a succeeded job's metrics, step by step.
alter table job add column result_file_id uuid references file (file_id);
