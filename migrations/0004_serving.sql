-- A serving process: one base model, many adapters. The row is wanted first, launched after.
create table replica (
    replica_id    uuid primary key,
    base_model_id uuid not null references base_model,
    node_id       uuid references node,
    state         text not null constraint replica_state_check check (state in
        ('wanted', 'launching', 'ready', 'ended')),
    -- host:port, once it listens.
    address       text,
    -- The bearer that it takes, and shows in its own reports.
    token         text not null,
    -- domain::serve::ServeSpec's numbers, known once it is launched.
    memory_budget bigint,
    threads       integer,
    heartbeat_seconds integer,
    error         text,
    heartbeat_at  timestamptz not null default now(),
    last_used_at  timestamptz not null default now(),
    -- When a message that names it was last put on a queue.
    pushed_at     timestamptz not null default now(),
    created_at    timestamptz not null default now(),
    ended_at      timestamptz
);
-- Until pools scale, one living replica serves a base: a second wish meets the first.
create unique index replica_one_per_base on replica (base_model_id) where state <> 'ended';
