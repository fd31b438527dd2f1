-- Where a project wants to be told of events.
create table webhook_endpoint (
    webhook_endpoint_id   uuid primary key,
    project_id            uuid not null references project,
    url                   text not null,
    description           text not null,
    -- Names of domain::event::EventType; '*': all, also those that come to be.
    event_types           text[] not null,
    -- What deliveries are signed with, sealed by store::seal under a key that the database does not have.
    secret                bytea not null,
    -- After a rotation, until then: deliveries are signed with both.
    previous_secret       bytea,
    previous_secret_until timestamptz,
    -- Why nothing is sent there: the user said so, or it answered that it is gone; null: it is enabled.
    disabled_reason       text constraint webhook_endpoint_disabled_check check (disabled_reason in ('user', 'gone')),
    created_at            timestamptz not null default now(),
    constraint webhook_endpoint_overlap_check check ((previous_secret is null) = (previous_secret_until is null))
);
create index webhook_endpoint_by_project on webhook_endpoint (project_id, webhook_endpoint_id desc);
select protect_tenant_table('webhook_endpoint');

-- An event on its way to an endpoint. Tried until it is delivered or given up; a replay starts anew.
create table webhook_delivery (
    webhook_delivery_id uuid primary key,
    project_id          uuid not null references project,
    webhook_endpoint_id uuid not null references webhook_endpoint on delete cascade,
    event_id            uuid not null references outbox on delete cascade,
    state               text not null default 'pending' constraint webhook_delivery_state_check check (state in
        ('pending', 'delivered', 'failed')),
    -- Attempts that were begun, all in all: the newest one's number. It fences what an attempt writes at its end.
    attempts            integer not null default 0,
    -- Failed attempts since the start or the last replay: how far down the table of delays it is.
    failures            integer not null default 0,
    next_attempt_at     timestamptz not null default now(),
    -- While an attempt is under way: until when nobody else begins one.
    leased_until        timestamptz,
    created_at          timestamptz not null default now()
);
create index webhook_delivery_due on webhook_delivery (webhook_endpoint_id, next_attempt_at) where state = 'pending';
create index webhook_delivery_by_endpoint on webhook_delivery (webhook_endpoint_id, webhook_delivery_id desc);
create index webhook_delivery_by_event on webhook_delivery (event_id);
select protect_tenant_table('webhook_delivery');

-- One attempt: written when it begins, completed when it ends. One that was never completed died with its scheduler.
create table webhook_attempt (
    webhook_delivery_id uuid not null references webhook_delivery on delete cascade,
    number              integer not null,
    started_at          timestamptz not null default now(),
    ended_at            timestamptz,
    status_code         integer,
    latency_ms          integer,
    -- The beginning of the answer's body.
    response_excerpt    text,
    -- Why it counts as failed; null: it did not.
    error               text,
    primary key (webhook_delivery_id, number)
);
select protect_child_table('webhook_attempt', 'webhook_delivery', 'webhook_delivery_id');
