-- A job can be paused: its trainer stops with a checkpoint, its node is freed, and it waits until it is resumed.
alter table job drop constraint job_state_check;
alter table job add constraint job_state_check check (state in
    ('validating', 'queued', 'provisioning', 'running', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed',
     'cancelled'));
-- Why, while it is pausing or paused: somebody asked, or its money is spent.
alter table job add column pause_reason text
    constraint job_pause_reason_check check (pause_reason in ('asked', 'price_cap', 'budget'));
alter table job add constraint job_pause_reason_state_check
    check ((pause_reason is null) = (state not in ('pausing', 'paused')));

-- The order of a job's events. Ids are minted by clocks of several machines; this is given out while the job's row is
-- locked, so a reader who has seen one number will never meet a smaller one.
alter table job_event add column sequence bigint not null generated always as identity;
drop index job_event_by_job;
create unique index job_event_by_job on job_event (job_id, sequence desc);

-- What a run's steps took: how long a job will go on, and what the next one will take, is reckoned from it.
alter table run add column steps bigint not null default 0;
alter table run add column tokens bigint not null default 0;
alter table run add column step_ms bigint not null default 0;
