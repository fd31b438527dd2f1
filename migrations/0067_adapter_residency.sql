-- The residency of adapters: where replicas have them, as they report it, and the versions that users prefetch.

alter table replica
    -- As of its last report: the adapters in its memory, by key (domain::serve::AdapterState).
    add column adapter_states jsonb not null default '{}',
    -- As of its last listing: the sizes of the adapters in its node's disk cache, by key.
    add column disk_adapters  jsonb not null default '{}';

-- A version that the replicas of its base load ahead of requests, and evict after all others until it expires. The row
-- stays then, at most one of a version.
create table adapter_prefetch (
    adapter_version_id uuid primary key references adapter_version,
    project_id         uuid not null references project,
    expires_at         timestamptz not null
);
create index adapter_prefetch_by_project on adapter_prefetch (project_id);
select protect_tenant_table('adapter_prefetch');
select audit_table('adapter_prefetch', 'adapter.prefetch', 'adapter_version_id');
