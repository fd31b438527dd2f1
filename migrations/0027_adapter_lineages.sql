-- An adapter is a named lineage in a project: what a job gives, or an import brings, is its next version. Versions never
-- change; only an alias moves from one to another.
create table adapter (
    adapter_id uuid primary key,
    project_id uuid not null references project,
    -- A job's suffix, the name that an import gives, or else the base's name. No '@', ':' or '/': house@prod is an alias.
    name       text not null constraint adapter_name_check check (name ~ '^[A-Za-z0-9._-]{1,96}$'),
    created_at timestamptz not null default now(),
    constraint adapter_name_key unique (project_id, name)
);

alter table adapter_version
    -- An import has no job.
    alter column job_id drop not null,
    add column adapter_id uuid references adapter,
    -- Counted from 1 in each lineage; the number of a deleted one is not given again.
    add column version integer,
    -- SHA-256 over a line `<sha256>  <name>` per file, sorted by name.
    add column digest text,
    -- domain::spec::AdapterSpec.
    add column shape jsonb,
    -- attune_manifest.json, to the byte; null for versions that are older than it.
    add column manifest text;

-- Earlier versions join the lineage of their job's suffix. For the length of this the owner, who writes it, must see
-- every row, also where row security is forced on it.
do $$
declare
    forced regclass[];
    name   regclass;
begin
    select coalesce(array_agg(oid::regclass), '{}') into forced from pg_class
        where relforcerowsecurity and oid in ('job'::regclass, 'adapter_version'::regclass);
    foreach name in array forced loop
        execute format('alter table %s no force row level security', name);
    end loop;
    insert into adapter (adapter_id, project_id, name, created_at)
        select gen_random_uuid(), v.project_id, coalesce(job.suffix, b.name), min(v.created_at)
        from adapter_version v join job using (job_id) join base_model b on b.base_model_id = v.base_model_id
        group by v.project_id, coalesce(job.suffix, b.name);
    update adapter_version v set adapter_id = found.adapter_id, version = found.version, shape = found.shape,
        digest = (
            select encode(sha256(convert_to(string_agg(
                format(E'%s  %s\n', file ->> 'sha256', file ->> 'name'), '' order by (file ->> 'name') collate "C"
            ), 'UTF8')), 'hex') from jsonb_array_elements(v.files) file
        )
    from (
        select w.adapter_version_id, adapter.adapter_id, job.spec -> 'adapter' as shape,
            row_number() over (partition by adapter.adapter_id order by w.adapter_version_id) as version
        from adapter_version w join job using (job_id) join base_model b on b.base_model_id = w.base_model_id
            join adapter on adapter.project_id = w.project_id and adapter.name = coalesce(job.suffix, b.name)
    ) found
    where found.adapter_version_id = v.adapter_version_id;
    foreach name in array forced loop
        execute format('alter table %s force row level security', name);
    end loop;
end
$$;

alter table adapter_version
    alter column adapter_id set not null,
    alter column version set not null,
    alter column digest set not null,
    alter column shape set not null,
    add constraint adapter_version_version_key unique (adapter_id, version);

-- What moves: house@prod is the version that the row names at the moment of the request.
create table adapter_alias (
    project_id         uuid not null references project,
    adapter_id         uuid not null references adapter,
    -- Begins with a letter, so that house@2 is always version 2.
    alias              text not null constraint adapter_alias_alias_check check (alias ~ '^[a-z][a-z0-9_-]{0,31}$'),
    adapter_version_id uuid not null references adapter_version,
    moved_at           timestamptz not null default now(),
    primary key (adapter_id, alias)
);
create index adapter_alias_by_version on adapter_alias (adapter_version_id);

-- Each move, in order; never changed.
create table adapter_alias_move (
    adapter_alias_move_id uuid primary key,
    project_id            uuid not null references project,
    adapter_id            uuid not null references adapter,
    alias                 text not null,
    -- Null: the alias was not there before.
    from_version_id       uuid references adapter_version,
    -- Null: the alias was taken away.
    to_version_id         uuid references adapter_version,
    moved_at              timestamptz not null default now()
);
create index adapter_alias_move_by_alias on adapter_alias_move (adapter_id, alias, adapter_alias_move_id desc);

select protect_tenant_table('adapter');
select protect_tenant_table('adapter_alias');
select protect_tenant_table('adapter_alias_move');
