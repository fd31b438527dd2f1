-- Who changed what, and when: written by the change itself, and by nobody ever changed.
create table audit_log (
    audit_log_id    uuid primary key,
    organization_id uuid not null,
    project_id      uuid,
    -- file.created
    event           text not null,
    -- The row that changed.
    object_id       uuid not null,
    -- The operation that was called: create_file.
    operation       text not null,
    -- api_key or person, and which.
    actor_kind      text not null constraint audit_log_actor_check check (actor_kind in ('api_key', 'person')),
    actor_id        uuid not null,
    address         text,
    request_id      text not null,
    created_at      timestamptz not null default now()
);
create index audit_log_by_organization on audit_log (organization_id, audit_log_id desc);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is only ever added to' using errcode = 'insufficient_privilege';
end
$$;
create trigger append_only before update or delete on audit_log for each row execute function refuse_change();
create trigger append_only_whole before truncate on audit_log for each statement execute function refuse_change();

alter table audit_log enable row level security;
alter table audit_log force row level security;
create policy tenant on audit_log for select to attune_app using (organization_id = tenant_organization());
create policy writes on audit_log for insert to attune_app
    with check (organization_id = tenant_organization() or project_id = tenant_project());
create policy platform on audit_log for select to attune_platform using (true);
grant select, insert on audit_log to attune_app;
revoke all on audit_log from attune_platform;
grant select on audit_log to attune_platform;

-- A UUIDv7, as store::mint makes them: later ones sort after earlier ones.
create function new_audit_log_id() returns uuid language sql volatile as $$
    select encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

-- Runs in the transaction of the change, so that both are kept or neither. `attune.origin` says who asked, and from
-- where: actor kind | actor | address | request | operation. Without it nobody asked: it is the platform's own work.
-- Arguments: what the row is called, and the column of its id.
create function note_change() returns trigger language plpgsql as $$
declare
    origin  text[] := string_to_array(nullif(current_setting('attune.origin', true), ''), '|');
    before  jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) else '{}' end;
    after   jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) else to_jsonb(old) end;
    change  text := case tg_op when 'INSERT' then 'created' when 'DELETE' then 'deleted' else 'updated' end;
    project uuid := coalesce((after ->> 'project_id')::uuid, tenant_project());
    organization uuid;
    object  text := after ->> tg_argv[1];
    noted   text := coalesce(current_setting('attune.noted', true), '');
begin
    -- A request that changes a row twice has changed it.
    if origin is null or position(object in noted) > 0 then
        return null;
    end if;
    perform set_config('attune.noted', noted || object, true);
    if tg_op = 'UPDATE' then
        if before ->> 'deleted_at' is null and after ->> 'deleted_at' is not null
            or before ->> 'revoked_at' is null and after ->> 'revoked_at' is not null then
            change := 'deleted';
        elsif before ->> 'archived_at' is null and after ->> 'archived_at' is not null then
            change := 'archived';
        end if;
    end if;
    organization := coalesce((after ->> 'organization_id')::uuid, tenant_organization(),
        (select p.organization_id from project p where p.project_id = project));
    insert into audit_log (audit_log_id, organization_id, project_id, event, object_id, operation,
        actor_kind, actor_id, address, request_id)
    values (new_audit_log_id(), organization, project, tg_argv[0] || '.' || change, object::uuid,
        origin[5], origin[1], origin[2]::uuid, nullif(origin[3], ''), origin[4]);
    return null;
end
$$;

-- For each table that users change; called in the table's own migration.
create function audit_table(name regclass, noun text, key text) returns void language plpgsql as $$
begin
    execute format('create trigger note_change after insert or update or delete on %s
        for each row execute function note_change(%L, %L)', name, noun, key);
end
$$;

select audit_table('file', 'file', 'file_id');
select audit_table('job', 'job', 'job_id');
select audit_table('adapter_version', 'adapter', 'adapter_version_id');
select audit_table('base_model', 'base_model', 'base_model_id');
select audit_table('project', 'project', 'project_id');
select audit_table('api_key', 'api_key', 'api_key_id');
select audit_table('organization_member', 'user', 'person_id');
select audit_table('project_member', 'project.user', 'person_id');
