-- Other projects of the organization that may use a checkpoint as a model. Named by the model's name, as users do: the
-- permission of a checkpoint that is gone lets nobody in.
create table checkpoint_permission (
    checkpoint_permission_id uuid primary key,
    project_id               uuid not null references project,
    model_name               text not null,
    granted_project_id       uuid not null references project,
    created_at               timestamptz not null default now(),
    constraint checkpoint_permission_key unique (project_id, model_name, granted_project_id)
);
create index checkpoint_permission_by_granted on checkpoint_permission (granted_project_id, model_name);
select protect_tenant_table('checkpoint_permission');
-- A project that was let in sees that it was; it cannot let in others.
create policy granted on checkpoint_permission for select to attune_app using (granted_project_id = tenant_project());
