-- A job and what comes of it: job → run (1..n attempts) → adapter version.
create table job (
    job_id             uuid primary key,
    project_id         uuid not null references project,
    base_model_id      uuid not null references base_model,
    training_file_id   uuid not null references file (file_id),
    validation_file_id uuid references file (file_id),
    -- domain::job::JobState; changed only by store::job::step.
    state              text not null constraint job_state_check check (state in
        ('validating', 'queued', 'provisioning', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    suffix             text,
    metadata           jsonb not null default '{}',
    -- domain::spec::TrainSpec: every default filled in, nothing decided later.
    spec               jsonb not null,
    -- The request's method and hyperparameters as they came, shown back as OpenAI does.
    requested          jsonb not null,
    -- The scan of the rows with the base's own tokenizer, once it is done: tokens, longest row.
    token_facts        jsonb,
    -- The run that holds the job; its lease fences every write that the run causes.
    run_id             uuid,
    attempts           integer not null default 0,
    -- Attempts since the last new checkpoint; too many end the job.
    barren_attempts    integer not null default 0,
    total_steps        bigint,
    steps_done         bigint not null default 0,
    trained_tokens     bigint,
    error_code         text,
    error_message      text,
    error_param        text,
    -- When a message that names it was last put on a queue; the reconciler repeats an old one.
    pushed_at          timestamptz not null default now(),
    created_at         timestamptz not null default now(),
    started_at         timestamptz,
    finished_at        timestamptz,
    constraint job_error_check check ((error_code is null) = (error_message is null))
);
create index job_by_project on job (project_id, job_id desc);
create index job_unfinished on job (job_id) where state not in ('succeeded', 'failed', 'cancelled');

-- What the user can read of a job's life, in order. `data` holds metrics of an event of type metrics.
create table job_event (
    job_event_id uuid primary key,
    job_id       uuid not null references job on delete cascade,
    level        text not null constraint job_event_level_check check (level in ('info', 'warn', 'error')),
    type         text not null constraint job_event_type_check check (type in ('message', 'metrics')),
    message      text not null,
    data         jsonb,
    created_at   timestamptz not null default now()
);
create index job_event_by_job on job_event (job_id, job_event_id desc);

-- Memory reserved with a provider for one run or one replica, from before the launch until after the end.
create table node (
    node_id     uuid primary key,
    provider    text not null,
    offer       text not null,
    memory      bigint not null,
    -- What the provider calls the thing that it started; null until the launch has answered.
    handle      text,
    created_at  timestamptz not null default now(),
    released_at timestamptz
);
create index node_active on node (provider) where released_at is null;

-- One attempt at a job on one node. `run_lease` grows with each claim of the job; a report with another one is stale.
create table run (
    run_id             uuid primary key,
    job_id             uuid not null references job on delete cascade,
    node_id            uuid not null references node,
    attempt            integer not null,
    run_lease          bigint not null,
    -- domain::run::Plan.
    plan               jsonb not null,
    -- SHA-256 of the token that this run's trainer shows.
    token_hash         bytea not null,
    resume_id          uuid,
    heartbeat_seconds  integer not null,
    state              text not null constraint run_state_check check (state in ('launching', 'running', 'ended')),
    -- How it ended: published, failed, stopped, lost.
    outcome            text,
    -- Reports up to here are taken; a repeated one is not taken twice.
    next_sequence      bigint not null default 0,
    heartbeat_at       timestamptz not null default now(),
    predicted_peak     bigint not null,
    measured_peak      bigint,
    created_at         timestamptz not null default now(),
    ended_at           timestamptz,
    constraint run_lease_key unique (job_id, run_lease)
);
create index run_active on run (heartbeat_at) where state <> 'ended';

-- A state from which a run can go on. `files` are domain::run::Blob.
create table checkpoint (
    checkpoint_id uuid primary key,
    job_id        uuid not null references job on delete cascade,
    run_id        uuid not null references run,
    step          bigint not null,
    files         jsonb not null,
    train_loss    double precision not null,
    valid_loss    double precision,
    created_at    timestamptz not null default now(),
    constraint checkpoint_step_key unique (job_id, step)
);

-- What a job gave. Immutable; named by content. `files` are domain::run::Blob: a PEFT folder.
create table adapter_version (
    adapter_version_id   uuid primary key,
    project_id           uuid not null references project,
    base_model_id        uuid not null references base_model,
    job_id               uuid not null references job,
    -- As users name it: ft:smollm2-135m-instruct:project:suffix:id.
    model_name           text not null,
    files                jsonb not null,
    chat_template_sha256 text,
    created_at           timestamptz not null default now(),
    deleted_at           timestamptz,
    constraint adapter_version_model_name_key unique (model_name),
    constraint adapter_version_job_key unique (job_id)
);
create index adapter_version_by_project on adapter_version (project_id, adapter_version_id desc) where deleted_at is null;

-- Content that perhaps no row names: a row let go of it, or it was asked for and no row names it yet. After a while it
-- is deleted from the object store if no row names it then.
create table loose_blob (
    sha256       text primary key,
    delete_after timestamptz not null
);
