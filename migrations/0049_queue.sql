-- The queue of jobs: who goes first, and why the others wait.
alter table job
    -- domain::job::Priority: the order among the jobs of one project.
    add column priority        text not null default 'normal'
        constraint job_priority_check check (priority in ('low', 'normal', 'high')),
    -- Whether its trainer may be stopped at a checkpoint for another job; it is then queued again.
    add column preemptible     boolean not null default false,
    -- When it entered the queue for the first time. A job that is queued again keeps its age.
    add column queued_at       timestamptz,
    -- The memory that it needs at least, and the expected seconds of its run, as computed when it was first planned.
    -- Null: not computed since its last run began.
    add column need_bytes      bigint,
    add column expected_seconds double precision,
    -- The result of the last planning pass, next to waiting_reason; null unless it is queued.
    add column queue_position  integer,
    add column estimated_start timestamptz,
    -- How often it was stopped for another job. One that was is never the cause of such a stop.
    add column preemptions     integer not null default 0;
update job set queued_at = created_at where state not in ('validating', 'succeeded', 'failed', 'cancelled');

alter table job drop constraint job_pause_reason_check;
alter table job add constraint job_pause_reason_check
    check (pause_reason in ('asked', 'price_cap', 'budget', 'preempted'));

-- The waiting jobs of each project, by their age.
create index job_queued on job (project_id, queued_at) where state = 'queued';
-- The usage of projects is summed over the runs of the last days.
create index run_ended on run (ended_at) where state = 'ended';

-- The offer that a run was placed on: its estimate, term by term, and the reason why each other offer was not taken
-- (store::runs::placement::Placed). Null: a run from before this was recorded.
alter table run add column placed jsonb;

-- A project's share of the machines; a project without a row has the defaults. Set by whoever administers the
-- installation, seen by whoever sees the project.
create table project_queue (
    project_id       uuid primary key references project,
    -- Twice the weight is twice the share.
    weight           double precision not null default 1
        constraint project_queue_weight_check check (weight between 0.01 and 100),
    -- Jobs that may run at the same time; null: as many as the machines hold.
    max_running_jobs integer constraint project_queue_max_running_jobs_check check (max_running_jobs between 1 and 10000),
    -- The highest priority that a job of the project may have.
    max_priority     text not null default 'normal'
        constraint project_queue_max_priority_check check (max_priority in ('low', 'normal', 'high')),
    changed_at       timestamptz not null default now()
);
alter table project_queue enable row level security;
alter table project_queue force row level security;
create policy tenant on project_queue for select to attune_app using (tenant_installation() or exists (
    select from project as parent where parent.project_id = project_queue.project_id));
create policy installation_makes on project_queue for insert to attune_app with check (tenant_installation());
create policy installation_changes on project_queue for update to attune_app
    using (tenant_installation()) with check (tenant_installation());
create policy platform on project_queue to attune_platform using (true) with check (true);
grant select, insert, update on project_queue to attune_app;
grant select, insert, update, delete on project_queue to attune_platform;
select audit_table('project_queue', 'project.queue', 'project_id');
