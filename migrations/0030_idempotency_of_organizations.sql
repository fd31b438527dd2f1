-- Keys of requests that administer an organization stand beside those of projects: each belongs to one of the two.
alter table idempotency_key drop constraint idempotency_key_pkey;
alter table idempotency_key
    alter column project_id drop not null,
    add column organization_id uuid references organization on delete cascade,
    add column tenant_id uuid not null generated always as (coalesce(project_id, organization_id)) stored,
    add constraint idempotency_key_tenant_check check (num_nonnulls(project_id, organization_id) = 1),
    add primary key (tenant_id, key);
drop policy tenant on idempotency_key;
create policy tenant on idempotency_key to attune_app
    using (project_id = tenant_project() or organization_id = tenant_organization())
    with check (project_id = tenant_project() or organization_id = tenant_organization());
