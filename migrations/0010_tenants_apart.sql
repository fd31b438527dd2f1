-- Row security on every table that there is, and what each of the two roles may do beyond.

-- Whoever runs migrations and is no superuser takes on the roles only as their member. Where somebody else made them, a
-- membership was given already, or the first transaction says that it is missing.
do $$
begin
    if current_setting('is_superuser') = 'off' then
        execute format('grant attune_app, attune_platform to %I', current_user);
    end if;
exception when insufficient_privilege then
    null;
end
$$;

-- The organization that the transaction administers; null in all others.
create function tenant_organization() returns uuid language sql stable as
    $$ select nullif(current_setting('attune.organization_id', true), '')::uuid $$;

select protect_tenant_table('file');
select protect_tenant_table('job');
select protect_tenant_table('adapter_version');
select protect_child_table('job_event', 'job', 'job_id');
select protect_child_table('run', 'job', 'job_id');
select protect_child_table('checkpoint', 'job', 'job_id');

-- A project sees itself, and its organization's administration sees and makes all of the organization's. Nobody deletes
-- one: its rows would go with it.
alter table project enable row level security;
alter table project force row level security;
create policy tenant on project for select to attune_app
    using (project_id = tenant_project() or organization_id = tenant_organization());
create policy administration_makes on project for insert to attune_app
    with check (organization_id = tenant_organization());
create policy administration_changes on project for update to attune_app
    using (organization_id = tenant_organization()) with check (organization_id = tenant_organization());
create policy platform on project to attune_platform using (true) with check (true);
grant select, insert, update on project to attune_app;
grant select, insert, update, delete on project to attune_platform;

alter table organization enable row level security;
alter table organization force row level security;
create policy tenant on organization to attune_app using (organization_id = tenant_organization()
    or exists (select from project where project.organization_id = organization.organization_id));
create policy platform on organization to attune_platform using (true) with check (true);
grant select on organization to attune_app;
grant select, insert, update, delete on organization to attune_platform;

-- Seen with the project that they open.
select protect_child_table('api_key', 'project', 'project_id');

-- The installation's own: every project reads and adds base models; what becomes of nodes and replicas is the platform's.
grant select, insert on base_model, base_model_file to attune_app;
grant select, insert, update on loose_blob to attune_app;
grant select, insert, update, delete on base_model, base_model_file, loose_blob, node, replica to attune_platform;
alter default privileges in schema public grant select, insert, update, delete on tables to attune_platform;
