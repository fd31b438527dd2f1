-- Exports: other forms of an adapter, which a node writes. An export keeps what it was requested for, so that it needs
-- the version or checkpoint only for the content of its files.
create table export (
    export_id     uuid primary key,
    project_id    uuid not null references project,
    -- The name of the exported model: an adapter version's, or a checkpoint's.
    model_name    text not null,
    base_model_id uuid not null references base_model,
    -- The quantization of the base that the adapter was trained over: domain::spec::Quantization's name.
    quantization  text not null,
    -- domain::spec::AdapterSpec.
    shape         jsonb not null,
    -- The adapter's files, a PEFT folder: a list of domain::run::Blob.
    adapter_files jsonb not null,
    -- The text of the version's manifest; null: it has none.
    manifest      text,
    -- domain::export::ExportSpec.
    spec          jsonb not null,
    -- domain::export::ExportState.
    state         text not null default 'queued'
        constraint export_state_check check (state in ('queued', 'running', 'succeeded', 'failed')),
    -- The number of attempts; the last one's is the lease that its reports carry.
    attempts      integer not null default 0,
    node_id       uuid references node,
    token_hash    bytea,
    threads       integer,
    heartbeat_seconds integer,
    -- The number of the next event of the attempt.
    next_sequence bigint not null default 0,
    -- The reason why it still waits for a machine.
    waiting_reason text,
    -- The bytes of weights that are written, and of all; null: not known yet.
    done_bytes    bigint not null default 0,
    total_bytes   bigint,
    -- domain::export::Drift; null: not measured.
    drift         jsonb,
    predicted_peak bigint,
    measured_peak bigint,
    error_code    text,
    error_message text,
    heartbeat_at  timestamptz not null default now(),
    -- The time of the last message that names it.
    pushed_at     timestamptz not null default now(),
    created_at    timestamptz not null default now(),
    started_at    timestamptz,
    ended_at      timestamptz,
    -- Set when it ends; it is deleted then.
    expires_at    timestamptz,
    -- Hidden from then on; the sweep deletes its files, then its row.
    deleted_at    timestamptz
);
create index export_by_project on export (project_id, export_id desc);
create index export_unfinished on export (export_id) where state in ('queued', 'running') and deleted_at is null;
create index export_by_token on export (token_hash);
create index export_by_node on export (node_id);
select protect_tenant_table('export');
select audit_table('export', 'export', 'export_id');

-- The objects that an export's attempts were granted to upload, each under a key of the export: recorded before the
-- upload, so that the sweep finds what no published file names.
create table export_file (
    export_id    uuid not null references export,
    name         text not null,
    sha256       text not null,
    bytes        bigint not null,
    -- Whether it belongs to the complete export.
    is_published boolean not null default false,
    primary key (export_id, name, sha256)
);
select protect_child_table('export_file', 'export', 'export_id');
