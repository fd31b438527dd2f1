-- Who may name content. A digest is no right to read: a base model names only content that its own project has put, or
-- that a base model names which the project may use; a run reports only content that it has put itself.
create table project_blob (
    project_id uuid not null references project,
    sha256     text not null,
    bytes      bigint not null,
    -- Time enough to name it in a base model, whose own row says from then on that the project may name it.
    expires_at timestamptz not null,
    primary key (project_id, sha256)
);
create index project_blob_by_expiry on project_blob (expires_at);
select protect_tenant_table('project_blob');

-- What a run was granted to put, until the run has ended.
create table run_blob (
    run_id     uuid not null references run,
    sha256     text not null,
    bytes      bigint not null,
    -- The store has this content from elsewhere: the run puts its own under this key, where the platform reads it again
    -- before the run may name it. Null: the run puts it under its digest, or has proved that it has it.
    staged_key text,
    primary key (run_id, sha256)
);
select protect_child_table('run_blob', 'run', 'run_id');
