-- What was used, and what it cost by the prices of that moment. A row is written in the transaction of what it counts: for
-- a training run, its end; for answers, every few seconds, those of one key and model together.
create table usage (
    usage_id           uuid primary key,
    project_id         uuid not null references project,
    kind               text not null constraint usage_kind_check check (kind in ('training', 'completions')),
    -- Who asked; null: a person without a key.
    api_key_id         uuid references api_key,
    -- As users name it: the base that was trained over, or the model that answered.
    model              text not null,
    adapter_version_id uuid references adapter_version,
    job_id             uuid references job,
    run_id             uuid references run,
    requests           bigint not null default 0,
    input_tokens       bigint not null default 0,
    output_tokens      bigint not null default 0,
    trained_tokens     bigint not null default 0,
    -- From the reservation of the run's node to its release.
    node_ms            bigint not null default 0,
    micro_usd          bigint not null default 0,
    used_at            timestamptz not null default now()
);
create index usage_by_project on usage (project_id, used_at);
select protect_tenant_table('usage');

-- The price of an hour of what was reserved, as its offer had it.
alter table node add column micro_usd_per_hour bigint not null default 0;

alter table job
    -- Who made it.
    add column api_key_id                   uuid references api_key,
    -- The price of trained tokens when it was made; it does not change under a job.
    add column micro_usd_per_million_tokens bigint not null default 0,
    -- What it may cost; when that is spent, it is paused.
    add column max_micro_usd                bigint constraint job_max_micro_usd_check check (max_micro_usd > 0),
    -- The furthest step, and tokens with a loss up to there: each step counts once, however often it was done again.
    add column top_step                     bigint not null default 0,
    add column top_tokens                   bigint not null default 0,
    -- What its ended runs came to.
    add column charged_tokens               bigint not null default 0,
    add column node_ms                      bigint not null default 0,
    add column micro_usd                    bigint not null default 0;

-- What a project may spend in a calendar month (UTC); when that is spent, its jobs are paused.
create table budget (
    project_id        uuid primary key references project,
    monthly_micro_usd bigint not null constraint budget_monthly_micro_usd_check check (monthly_micro_usd >= 0),
    changed_at        timestamptz not null default now()
);
select protect_tenant_table('budget');
