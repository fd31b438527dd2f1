-- What users can be told of outside. A row is written in the transaction of the change that it tells of, so neither is
-- kept without the other; the scheduler makes deliveries of it (see webhook_delivery) and forgets it after a month.
create table outbox (
    event_id   uuid primary key,
    project_id uuid not null references project,
    -- domain::event::EventType's name: fine_tuning.job.succeeded.
    type       text not null,
    -- What the event's `data` holds: at least the id of what it is about.
    data       jsonb not null,
    created_at timestamptz not null default now(),
    -- When a delivery for each endpoint that listens was written down; null: not yet.
    relayed_at timestamptz
);
create index outbox_waiting on outbox (event_id) where relayed_at is null;
create index outbox_old on outbox (created_at);
select protect_tenant_table('outbox');
