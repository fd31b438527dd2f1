-- Pools of replicas, and the deployments that bound them. A pool is a base model in one quantization; requests of all
-- projects share its replicas. docs/SERVING.md has the rules.

-- What a project requires of a pool. The pool's bounds are the sums over its deployments.
create table deployment (
    deployment_id      uuid primary key,
    project_id         uuid not null references project,
    base_model_id      uuid not null references base_model,
    quantization       text not null constraint deployment_quantization_check
        check (quantization in ('none', 'int8', 'nf4', 'nf4-double')),
    -- The user's label.
    name               text not null,
    -- Replicas that run all the time, charged to the project by the hour.
    min_replicas       integer not null constraint deployment_min_check check (min_replicas >= 0),
    max_replicas       integer not null constraint deployment_max_check check (max_replicas between 1 and 32),
    -- Requests, in progress and waiting, per replica. Null: the installation's.
    target_concurrency integer constraint deployment_target_check check (target_concurrency between 1 and 256),
    -- Seconds without a request after which the pool has no replica any more. Null: the installation's.
    cooldown_seconds   integer constraint deployment_cooldown_check check (cooldown_seconds between 30 and 86400),
    created_at         timestamptz not null default now(),
    constraint deployment_order_check check (min_replicas <= max_replicas),
    constraint deployment_pool_key unique (project_id, base_model_id, quantization)
);
create index deployment_by_project on deployment (project_id, deployment_id desc);
create index deployment_by_pool on deployment (base_model_id, quantization);
select protect_tenant_table('deployment');
select audit_table('deployment', 'deployment', 'deployment_id');

-- What the platform records of a deployment: a row of its own, so that the deployment's version changes only when a user
-- changes it.
create table deployment_use (
    deployment_id    uuid primary key references deployment on delete cascade,
    -- Until when its minimum is charged, and the sums of the charges.
    charged_at       timestamptz not null default now(),
    node_ms          bigint not null default 0,
    micro_usd        bigint not null default 0,
    -- The last request of its project to its pool, to the minute. Null: there was none.
    last_request_at  timestamptz,
    -- When the project was notified that the deployment is idle; null since the last request.
    idle_notified_at timestamptz,
    -- Whether the project's budget is spent: the minimum counts as 0 then.
    is_suspended     boolean not null default false
);
select protect_child_table('deployment_use', 'deployment', 'deployment_id');

-- The replicas that a pool always has.
create function pool_minimum(uuid, text) returns bigint language sql stable as $$
    select coalesce(sum(d.min_replicas), 0)
    from deployment as d
        join deployment_use as u on u.deployment_id = d.deployment_id and not u.is_suspended
        join project as p on p.project_id = d.project_id and p.archived_at is null
        join base_model as b on b.base_model_id = d.base_model_id and b.deleted_at is null
    where d.base_model_id = $1 and d.quantization = $2
$$;

-- The minimum of a deployment is charged as usage of its own kind. It is not a run's, so that a project's maximum of
-- node-hours does not count it.
alter table usage drop constraint usage_kind_check;
alter table usage add constraint usage_kind_check check (kind in ('training', 'refund', 'completions', 'deployment'));
drop index usage_node_hours;
create index usage_node_hours on usage (project_id, used_at) include (node_ms) where kind in ('training', 'refund');
create or replace function node_seconds_of_month(uuid) returns double precision language sql stable as $$
    select (
        (select coalesce(sum(
                greatest(least(node_ms, since_ms(month.began, used_at)), -since_ms(month.began, used_at))), 0) / 1000.0
            from usage where project_id = $1 and used_at >= month.began and kind in ('training', 'refund'))
        + (select coalesce(sum(since_ms(greatest(node.created_at, month.began), now())), 0) / 1000.0
            from run join job on job.job_id = run.job_id join node using (node_id)
            where job.project_id = $1 and run.state <> 'ended'))::double precision
    from (select date_trunc('month', now() at time zone 'UTC') at time zone 'UTC' as began) as month
$$;

-- Several replicas of a base in one quantization. One that drains gets no new requests and ends when it has none.
drop index replica_one_per_base;
create index replica_by_pool on replica (base_model_id, quantization) where state <> 'ended';
create index replica_failed on replica (base_model_id, quantization, ended_at) where error is not null;
alter table replica drop constraint replica_state_check;
alter table replica add constraint replica_state_check
    check (state in ('wanted', 'launching', 'ready', 'draining', 'ended'));
alter table replica
    add column draining_since    timestamptz,
    -- As of its last report: requests in progress, and the adapters in its memory (domain::serve::AdapterKey).
    add column active_requests   bigint not null default 0,
    add column resident_adapters jsonb not null default '[]';

-- The requests of each pool, in progress and waiting, as each process that sends requests to replicas counts them: the
-- mean of its last second. The autoscaler reads what is not older than a few seconds, so a crash may lose all of it.
create unlogged table pool_load (
    -- A random ID of the process.
    process_id    uuid not null,
    base_model_id uuid not null,
    quantization  text not null,
    requests      double precision not null,
    seen_at       timestamptz not null default now(),
    primary key (process_id, base_model_id, quantization)
);
grant select, insert, update, delete on pool_load to attune_platform;

-- Wakes the requests that wait for a replica.
create function notify_replica() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or old.state <> new.state then
        perform pg_notify('attune_replica', '');
    end if;
    return null;
end
$$;
create trigger notify_replica after insert or update on replica for each row execute function notify_replica();
