-- The leader among the schedulers: one row (store::leadership). Every transaction in which a scheduler starts, stops, ends
-- or queues work compares the term with its own, and so fails once another scheduler leads.
create table leadership (
    is_only  boolean primary key default true
        constraint leadership_one_row check (is_only),
    -- Grows with each new leader.
    term     bigint not null default 0,
    taken_at timestamptz not null default now(),
    -- When the leader last recorded that it is alive, by the database's clock.
    seen_at  timestamptz not null default now()
);
insert into leadership default values;
grant select, update on leadership to attune_platform;
