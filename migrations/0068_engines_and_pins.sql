-- The engine of a deployment's replicas, and the adapters that a deployment pins. docs/SERVING.md has the rules.

-- A pool has one engine: that of its oldest deployment that counts.
alter table deployment
    add column engine text not null default 'attune' constraint deployment_engine_check
        check (engine in ('attune', 'vllm', 'lorax')),
    -- Adapter versions of the project, over the deployment's base in its quantization. Those that were deleted since do
    -- not count.
    add column pinned_adapters uuid[] not null default '{}'
        constraint deployment_pins_check check (cardinality(pinned_adapters) <= 32);

-- The engine that a replica was started with.
alter table replica
    add column engine text not null default 'attune' constraint replica_engine_check
        check (engine in ('attune', 'vllm', 'lorax'));

-- The engine of the replicas that a pool starts.
create function pool_engine(uuid, text) returns text language sql stable as $$
    select coalesce((
        select d.engine
        from deployment as d
            join project as p on p.project_id = d.project_id and p.archived_at is null
            join base_model as b on b.base_model_id = d.base_model_id and b.deleted_at is null
        where d.base_model_id = $1 and d.quantization = $2
        order by d.deployment_id limit 1), 'attune')
$$;
