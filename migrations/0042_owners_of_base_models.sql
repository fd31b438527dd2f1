-- A base model belongs to a project, which alone may use it, or to the installation: then every project may. A project's
-- own comes first where both have the same name, so nobody can take a name from others. A deleted one leaves its row, for
-- the jobs that were trained over it, and nothing else.
alter table base_model
    add column project_id uuid references project,
    add column deleted_at timestamptz,
    drop constraint base_model_name_key;
create unique index base_model_name_key on base_model (project_id, name)
    where project_id is not null and deleted_at is null;
create unique index base_model_installation_name_key on base_model (name)
    where project_id is null and deleted_at is null;

-- Whether the transaction is for somebody who administers the installation.
create function tenant_installation() returns boolean language sql stable as
    $$ select coalesce(current_setting('attune.installation', true) = 'on', false) $$;

alter table base_model enable row level security;
alter table base_model force row level security;
create policy tenant on base_model for select to attune_app
    using (project_id = tenant_project() or (project_id is null and tenant_project() is not null));
create policy owner_makes on base_model for insert to attune_app
    with check (project_id = tenant_project() or (project_id is null and tenant_installation()));
create policy owner_changes on base_model for update to attune_app
    using (project_id = tenant_project() or (project_id is null and tenant_installation()))
    with check (project_id = tenant_project() or (project_id is null and tenant_installation()));
create policy platform on base_model to attune_platform using (true) with check (true);
grant update on base_model to attune_app;

alter table base_model_file enable row level security;
alter table base_model_file force row level security;
create policy tenant on base_model_file for select to attune_app using (exists (
    select from base_model as parent where parent.base_model_id = base_model_file.base_model_id));
create policy owner_makes on base_model_file for insert to attune_app with check (exists (
    select from base_model as parent where parent.base_model_id = base_model_file.base_model_id
        and (parent.project_id = tenant_project() or (parent.project_id is null and tenant_installation()))));
create policy platform on base_model_file to attune_platform using (true) with check (true);

-- A key with the scope installation administers the whole installation.
alter table api_key
    drop constraint api_key_scopes_check,
    add constraint api_key_scopes_check check (scopes <@ '{all,files:read,files:write,jobs:read,jobs:write,models:read,models:write,inference,webhooks,usage:read,admin,installation}'::text[] and scopes <> '{}');
