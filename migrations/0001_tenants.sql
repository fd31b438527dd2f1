-- Who is there. An organization owns projects; a project is the tenant: every row that a user made names one, and
-- every read of such rows asks for it.
create table organization (
    organization_id uuid primary key,
    name            text not null,
    created_at      timestamptz not null default now(),
    constraint organization_name_key unique (name)
);

create table project (
    project_id      uuid primary key,
    organization_id uuid not null references organization,
    -- Stands in the name of a tuned model, ft:base:project:suffix:id, so it is short and plain.
    name            text not null constraint project_name_check check (name ~ '^[a-z0-9][a-z0-9-]{0,30}$'),
    created_at      timestamptz not null default now(),
    constraint project_name_key unique (organization_id, name)
);

-- A key is shown once and kept only as the SHA-256 of its 32 random bytes: there is nothing to guess, so no slow hash.
create table api_key (
    api_key_id   uuid primary key,
    project_id   uuid not null references project,
    name         text not null,
    secret_hash  bytea not null,
    created_at   timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at   timestamptz,
    constraint api_key_secret_hash_key unique (secret_hash)
);
