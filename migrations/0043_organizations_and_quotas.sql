-- Organizations are made by whoever administers the installation. The transaction that makes one is the new one's.
create policy installation_sees on organization for select to attune_app using (tenant_installation());
create policy installation_makes on organization for insert to attune_app
    with check (organization_id = tenant_organization() and tenant_installation());
grant insert on organization to attune_app;
select audit_table('organization', 'organization', 'organization_id');

-- A tuned model's name is its project's alone: another organization's project may be called the same.
alter table adapter_version
    drop constraint adapter_version_model_name_key,
    add constraint adapter_version_model_name_key unique (project_id, model_name);

-- What a project has stored is counted whenever it stores more.
create function blob_bytes(files jsonb) returns bigint language sql immutable parallel safe as
    $$ select coalesce(sum((file ->> 'bytes')::bigint), 0)::bigint from jsonb_array_elements(files) file $$;
alter table adapter_version add column bytes bigint not null generated always as (blob_bytes(files)) stored;
alter table checkpoint add column bytes bigint not null generated always as (blob_bytes(files)) stored;
create index adapter_version_stored on adapter_version (project_id) include (bytes) where deleted_at is null;
