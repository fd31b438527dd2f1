-- Two choices of how a deployment's replicas decode. docs/SERVING.md has the rules.

alter table deployment
    -- The number type of keys and values in memory.
    add column kv_cache_dtype text not null default 'auto' constraint deployment_kv_cache_dtype_check
        check (kv_cache_dtype in ('auto', 'int8')),
    -- The smaller base that drafts tokens, which the deployment's base verifies. Null: none.
    add column draft_model_id uuid references base_model
        constraint deployment_draft_model_check check (draft_model_id <> base_model_id);
create index deployment_by_draft_model on deployment (draft_model_id) where draft_model_id is not null;

-- Those that a replica was started with. No foreign key: a replica of a deployment that was changed completes its
-- requests.
alter table replica
    add column kv_cache_dtype text not null default 'auto' constraint replica_kv_cache_dtype_check
        check (kv_cache_dtype in ('auto', 'int8')),
    add column draft_model_id uuid;
