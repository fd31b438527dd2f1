-- A file that comes in parts. Each part is an object of its own until they are joined; what was joined, cancelled or
-- left is swept.
create table upload (
    upload_id                  uuid primary key,
    project_id                 uuid not null references project,
    filename                   text not null,
    purpose                    text not null,
    -- What the parts must come to.
    bytes                      bigint not null,
    -- A pending one whose time is up counts as expired from that moment on; the sweep writes it down.
    status                     text not null default 'pending' constraint upload_status_check
        check (status in ('pending', 'completed', 'cancelled', 'expired')),
    -- Of the file that it becomes.
    file_expires_after_seconds integer,
    file_id                    uuid references file,
    -- Its parts are being joined until then.
    claimed_until              timestamptz,
    created_at                 timestamptz not null default now(),
    expires_at                 timestamptz not null default now() + interval '1 hour',
    constraint upload_file_check check ((status = 'completed') = (file_id is not null))
);
create index upload_pending on upload (expires_at) where status = 'pending';

create table upload_part (
    upload_part_id uuid primary key,
    upload_id      uuid not null references upload on delete cascade,
    project_id     uuid not null references project,
    bytes          bigint not null,
    object_key     text not null,
    created_at     timestamptz not null default now()
);
create index upload_part_by_upload on upload_part (upload_id);

select protect_tenant_table('upload');
select protect_tenant_table('upload_part');
