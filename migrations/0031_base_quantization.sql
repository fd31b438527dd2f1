-- An adapter corrects the base in the quantization that it was trained over: that is a part of its identity, and a replica
-- serves one base in one quantization. The words are those of domain::spec::Quantization::name.
create function quantization_of(spec jsonb) returns text language sql immutable as $$
    select case spec ->> 'type'
        when 'nf4' then case when (spec ->> 'double_quant')::boolean then 'nf4-double' else 'nf4' end
        when 'int8' then 'int8'
        else 'none'
    end
$$;

alter table adapter_version add column quantization text constraint adapter_version_quantization_check
    check (quantization in ('none', 'int8', 'nf4', 'nf4-double'));
-- Earlier versions: the job's, or what the manifest says that an import brought; else the base as it is. For the length of
-- this the owner, who writes it, must see every row, also where row security is forced on it.
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
    update adapter_version v set quantization = quantization_of(coalesce(
        (select job.spec -> 'quantization' from job where job.job_id = v.job_id),
        v.manifest::jsonb #> '{origin,brought,origin,train,quantization}'
    ));
    foreach name in array forced loop
        execute format('alter table %s force row level security', name);
    end loop;
end
$$;
drop function quantization_of;
alter table adapter_version alter column quantization set not null;

-- Replicas that run over this change serve the base as it is, and are told nothing else.
alter table replica add column quantization text not null default 'none' constraint replica_quantization_check
    check (quantization in ('none', 'int8', 'nf4', 'nf4-double'));
alter table replica alter column quantization drop default;
drop index replica_one_per_base;
create unique index replica_one_per_base on replica (base_model_id, quantization) where state <> 'ended';
