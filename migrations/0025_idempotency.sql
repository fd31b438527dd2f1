-- The answers to requests that came with an Idempotency-Key, for 24 hours. A row is there from the first request's
-- beginning; `answer` comes with its end.
create table idempotency_key (
    project_id  uuid not null references project on delete cascade,
    key         text not null,
    -- The request that holds the key; a takeover after a crash writes its own.
    claim       uuid not null,
    -- Method, path and query.
    request     text not null,
    -- SHA-256 of the body; null until the body has come whole.
    body_sha256 bytea,
    -- While the first request goes on it renews this; one that is past belongs to a process that is gone.
    held_until  timestamptz not null,
    -- Set in the transaction in which the request makes its change: true exactly if that was committed.
    applied     boolean not null default false,
    -- The answer; null until there is one.
    status      smallint,
    headers     jsonb,
    answer      bytea,
    created_at  timestamptz not null default now(),
    primary key (project_id, key),
    constraint idempotency_key_answer_check check ((status is null) = (answer is null))
);
create index idempotency_key_by_age on idempotency_key (created_at);
select protect_tenant_table('idempotency_key');
