-- Quotas of projects, next to max_running_jobs.
alter table project_queue
    -- Node-hours of the project's runs in a calendar month (UTC); when they are used up, its jobs wait for the next.
    -- Null: no maximum.
    add column max_node_hours   double precision constraint project_queue_max_node_hours_check
        check (max_node_hours > 0 and max_node_hours <= 10000000),
    -- Bytes that the project may store, within what the configuration allows to each project. Null: that.
    add column max_stored_bytes bigint constraint project_queue_max_stored_bytes_check check (max_stored_bytes > 0);

create index usage_node_hours on usage (project_id, used_at) include (node_ms) where kind <> 'completions';

-- The milliseconds from one time to another.
create function since_ms(timestamptz, timestamptz) returns bigint language sql immutable parallel safe as
    $$ select (extract(epoch from $2 - $1) * 1000)::bigint $$;

-- The node-seconds of a project's runs since the month began, refunds subtracted, active runs included. A run that was
-- active when the month began counts from then.
create function node_seconds_of_month(uuid) returns double precision language sql stable as $$
    select (
        (select coalesce(sum(
                greatest(least(node_ms, since_ms(month.began, used_at)), -since_ms(month.began, used_at))), 0) / 1000.0
            from usage where project_id = $1 and used_at >= month.began and kind <> 'completions')
        + (select coalesce(sum(since_ms(greatest(node.created_at, month.began), now())), 0) / 1000.0
            from run join job on job.job_id = run.job_id join node using (node_id)
            where job.project_id = $1 and run.state <> 'ended'))::double precision
    from (select date_trunc('month', now() at time zone 'UTC') at time zone 'UTC' as began) as month
$$;

-- A check of a job's files ends with its scheduler if that is killed. Such a check is not an attempt of the job.
alter table job
    -- The leadership's term in which a check began that has not ended; null: there is none.
    add column validation_term          bigint,
    -- How many checks in a row ended with their scheduler.
    add column validation_interruptions integer not null default 0
        constraint job_validation_interruptions_check check (validation_interruptions >= 0);
