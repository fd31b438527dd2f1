-- Two roles that transactions take on: attune_app sees one project's rows, attune_platform does the platform's own work.
-- Neither can log in, neither owns a table. Roles belong to the whole cluster, so another database may have made them.
do $$
declare
    name text;
begin
    foreach name in array array['attune_app', 'attune_platform'] loop
        begin
            execute format('create role %I nologin', name);
        exception when duplicate_object or unique_violation then
            null;
        end;
    end loop;
end
$$;

-- The project that the transaction is for; null, and so no row at all, when nobody said.
create function tenant_project() returns uuid language sql stable as
    $$ select nullif(current_setting('attune.project_id', true), '')::uuid $$;

-- Every table with a project_id calls this in its migration: the application sees only the project's rows and can write
-- no other's, the platform sees all, and the owner, for whom row security is forced too, sees none.
create function protect_tenant_table(name regclass) returns void language plpgsql as $$
begin
    execute format('alter table %s enable row level security', name);
    execute format('alter table %s force row level security', name);
    execute format('create policy tenant on %s to attune_app using (project_id = tenant_project())
        with check (project_id = tenant_project())', name);
    execute format('create policy platform on %s to attune_platform using (true) with check (true)', name);
    execute format('grant select, insert, update, delete on %s to attune_app, attune_platform', name);
end
$$;

-- The same for a table whose rows belong to a row of a protected table: they are seen by whoever sees that one.
create function protect_child_table(name regclass, parent regclass, key text) returns void language plpgsql as $$
begin
    execute format('alter table %s enable row level security', name);
    execute format('alter table %s force row level security', name);
    execute format('create policy tenant on %1$s to attune_app
        using (exists (select from %2$s as parent where parent.%3$I = %1$s.%3$I))
        with check (exists (select from %2$s as parent where parent.%3$I = %1$s.%3$I))', name, parent, key);
    execute format('create policy platform on %s to attune_platform using (true) with check (true)', name);
    execute format('grant select, insert, update, delete on %s to attune_app, attune_platform', name);
end
$$;
