-- Jobs choose their machine by the predicted cost, within limits; prices of clouds are data.
alter table offer
    -- domain::offer::OfferDevice. A GPU's memory is the usable memory of one.
    add column device      text not null default 'cpu'
        constraint offer_device_check check (device in ('cpu', 'cuda')),
    add column gpu_product text,
    add column gpus        integer,
    add column gpu_memory  bigint,
    -- Whether the provider may reclaim the machine.
    add column spot        boolean not null default false,
    add column region      text;
alter table offer add constraint offer_gpu_check
    check ((device = 'cuda') = (gpu_product is not null and gpus is not null and gpu_memory is not null));

alter table job
    -- domain::offer::ComputeLimits; null: the default, which allows all but spot machines.
    add column limits   jsonb,
    -- A list of domain::offer::Slowness: the duration on each offer relative to expected_seconds, computed with it.
    -- Null: the same on all.
    add column slowness jsonb;

-- Instance types of clouds that an administrator of the installation has set or removed. They replace those of the
-- same name in the data of this version (domain::catalogue).
create table catalogue_entry (
    catalogue_entry_id uuid primary key default gen_random_uuid(),
    -- cloud.instance_type.region
    name       text not null constraint catalogue_entry_name_key unique,
    -- domain::catalogue::InstanceType
    entry      jsonb not null,
    changed_at timestamptz not null default now(),
    -- A removed entry hides the one of this version.
    deleted_at timestamptz
);
alter table catalogue_entry enable row level security;
alter table catalogue_entry force row level security;
create policy administration on catalogue_entry for select to attune_app using (tenant_organization() is not null);
create policy installation_makes on catalogue_entry for insert to attune_app with check (tenant_installation());
create policy installation_changes on catalogue_entry for update to attune_app
    using (tenant_installation()) with check (tenant_installation());
create policy platform on catalogue_entry to attune_platform using (true) with check (true);
grant select, insert, update on catalogue_entry to attune_app;
grant select on catalogue_entry to attune_platform;
select audit_table('catalogue_entry', 'catalogue_entry', 'catalogue_entry_id');
