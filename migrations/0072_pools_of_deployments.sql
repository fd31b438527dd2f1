-- A deployment has replicas of its own, which only its project's requests use, and which it pays for by the hour: a pool is
-- a base model in one quantization, of one deployment or of the installation. So what a project sets for its deployment
-- (the number of replicas, the engine, the device) concerns no other project. docs/SERVING.md has the rules.

-- The devices that its replicas may use.
alter table deployment
    add column device text not null default 'auto' constraint deployment_device_check
        check (device in ('auto', 'cpu', 'cuda'));

-- The maximum of max_replicas of a project's deployments together. Null: store::pools::deployment's.
alter table project_queue
    add column max_replicas integer constraint project_queue_max_replicas_check check (max_replicas >= 0);

alter table replica
    -- The deployment that it belongs to; null: the pool that all projects without one share. No foreign key: the replicas
    -- of a deployment that was deleted complete their requests.
    add column deployment_id uuid,
    -- The devices that it may be placed on.
    add column device text not null default 'auto' constraint replica_device_check
        check (device in ('auto', 'cpu', 'cuda'));
drop index replica_by_pool;
create index replica_by_pool on replica (base_model_id, quantization, deployment_id) where state <> 'ended';
create index replica_by_deployment on replica (deployment_id, ended_at) where deployment_id is not null;

delete from pool_load;
alter table pool_load
    add column deployment_id uuid,
    drop constraint pool_load_pkey,
    add constraint pool_load_pool_key unique nulls not distinct (process_id, base_model_id, quantization, deployment_id);

-- Whether a deployment has replicas: not while its project is archived or has spent its budget (deployment_use.is_suspended:
-- its requests use the shared pool then), nor once its base model was deleted.
create function is_deployed(uuid) returns boolean language sql stable as $$
    select exists (
        select from deployment as d
            join deployment_use as u on u.deployment_id = d.deployment_id and not u.is_suspended
            join project as p on p.project_id = d.project_id and p.archived_at is null
            join base_model as b on b.base_model_id = d.base_model_id and b.deleted_at is null
        where d.deployment_id = $1)
$$;

-- The deployment of a project, a base model and a quantization whose replicas answer the project's requests. Null: the shared
-- ones do.
create function deployment_of(uuid, uuid, text) returns uuid
    language sql stable as $$
    select d.deployment_id from deployment as d
    where d.project_id = $1 and d.base_model_id = $2 and d.quantization = $3 and is_deployed(d.deployment_id)
$$;

-- The replicas that a pool always has. Null: the shared pool, which has none.
create function deployment_minimum(uuid) returns integer language sql stable as $$
    select coalesce((select min_replicas from deployment where deployment_id = $1 and is_deployed($1)), 0)
$$;
drop function pool_minimum(uuid, text);
drop function pool_engine(uuid, text);

-- Attempts at an export. `attempts` numbers them, since the number is their lease. An attempt that did not run counts among
-- no maximum, and one that ended through no fault of the export among a larger one.
alter table export
    add column losses        integer not null default 0,
    add column interruptions integer not null default 0,
    -- The attempts in a row that were not launched.
    add column unlaunched    integer not null default 0,
    -- The time before which there is no further attempt.
    add column next_try_at   timestamptz not null default now();
update export set losses = attempts - case when state = 'running' then 1 else 0 end where attempts > 0;
