-- Many requests in one file, answered when there is time. A worker in the api holds a batch by a lease; each answer is a
-- row, so that one who takes over after a crash asks nothing twice that was answered.
create table batch (
    batch_id       uuid primary key,
    project_id     uuid not null references project,
    input_file_id  uuid not null references file (file_id),
    endpoint       text not null
        constraint batch_endpoint_check check (endpoint in ('/v1/chat/completions', '/v1/completions')),
    -- OpenAI's word for how long it may take.
    completion_window text not null constraint batch_window_check check (completion_window = '24h'),
    metadata       jsonb,
    -- domain::batch::BatchState.
    state          text not null constraint batch_state_check check (state in
        ('validating', 'in_progress', 'finalizing', 'completed', 'failed', 'expired', 'cancelling', 'cancelled')),
    -- What is wrong with the lines of the file: domain::batch::Defect.
    defects        jsonb not null default '[]',
    total          integer not null default 0,
    completed      integer not null default 0,
    failed         integer not null default 0,
    output_file_id uuid references file (file_id),
    error_file_id  uuid references file (file_id),
    -- For how long the two files are kept; null: until they are deleted.
    output_expires_seconds integer,
    -- Who works on it, and when they last said so.
    worker         uuid,
    heartbeat_at   timestamptz not null default now(),
    created_at     timestamptz not null default now(),
    expires_at     timestamptz not null default now() + interval '24 hours',
    in_progress_at timestamptz,
    finalizing_at  timestamptz,
    completed_at   timestamptz,
    failed_at      timestamptz,
    expired_at     timestamptz,
    cancelling_at  timestamptz,
    cancelled_at   timestamptz
);
create index batch_by_project on batch (project_id, batch_id desc);
create index batch_unfinished on batch (batch_id) where state in ('validating', 'in_progress', 'finalizing', 'cancelling');

-- One answer, as a line of the output or of the error file; gone when those are there.
create table batch_answer (
    batch_id   uuid not null references batch on delete cascade,
    -- Of the input file, counted from 1.
    line       integer not null,
    is_error   boolean not null,
    answer     text not null,
    created_at timestamptz not null default now(),
    primary key (batch_id, line)
);

select protect_tenant_table('batch');
select protect_child_table('batch_answer', 'batch', 'batch_id');
