-- A request that changes a row twice has changed it once, but rows of several tables and projects may share an id: a
-- person who leaves an organization leaves its projects too. So a note is kept for each noun, project and id, and the end
-- of a row is noted whatever happened to it before.
create or replace function note_change() returns trigger language plpgsql as $$
declare
    origin  text[] := string_to_array(nullif(current_setting('attune.origin', true), ''), '|');
    before  jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) else '{}' end;
    after   jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) else to_jsonb(old) end;
    change  text := case tg_op when 'INSERT' then 'created' when 'DELETE' then 'deleted' else 'updated' end;
    project uuid := coalesce((after ->> 'project_id')::uuid, tenant_project());
    organization uuid;
    object  text := after ->> tg_argv[1];
    noted   text := coalesce(current_setting('attune.noted', true), '');
    note    text;
begin
    if origin is null then
        return null;
    end if;
    if tg_op = 'UPDATE' then
        if before ->> 'deleted_at' is null and after ->> 'deleted_at' is not null
            or before ->> 'revoked_at' is null and after ->> 'revoked_at' is not null then
            change := 'deleted';
        elsif before ->> 'archived_at' is null and after ->> 'archived_at' is not null then
            change := 'archived';
        end if;
    end if;
    note := format('|%s %s %s', tg_argv[0], project, object);
    if change = 'deleted' then
        note := note || ' deleted';
    end if;
    if position(note in noted) > 0 then
        return null;
    end if;
    perform set_config('attune.noted', noted || note, true);
    organization := coalesce((after ->> 'organization_id')::uuid, tenant_organization(),
        (select p.organization_id from project p where p.project_id = project));
    insert into audit_log (audit_log_id, organization_id, project_id, event, object_id, operation,
        actor_kind, actor_id, address, request_id)
    values (new_audit_log_id(), organization, project, tg_argv[0] || '.' || change, object::uuid,
        origin[5], origin[1], origin[2]::uuid, nullif(origin[3], ''), origin[4]);
    return null;
end
$$;

-- Whoever joins the parts of an upload renews its claim while it works; the claim of one that is gone runs out.
alter table upload add column claimed_by uuid;

-- Runs and replicas are found by what they show, before anything else is known of the caller.
create index run_by_token on run (token_hash);
create index replica_by_token on replica (token);
