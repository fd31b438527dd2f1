-- People, what they are in an organization and in its projects, and what a key may do.

-- Whom an identity provider vouches for: the issuer's word for somebody, and nobody else's.
create table person (
    -- Reckoned from issuer and subject, so that whoever lets somebody in need not read first.
    person_id    uuid primary key,
    issuer       text not null,
    subject      text not null,
    -- As the issuer last said; never used to tell people apart.
    email        text,
    name         text,
    created_at   timestamptz not null default now(),
    last_seen_at timestamptz,
    constraint person_subject_key unique (issuer, subject)
);

-- An owner or admin of an organization is one in each of its projects.
create table organization_member (
    organization_id uuid not null references organization,
    person_id       uuid not null references person,
    role            text not null constraint organization_member_role_check
        check (role in ('viewer', 'member', 'admin', 'owner')),
    created_at      timestamptz not null default now(),
    constraint organization_member_pkey primary key (organization_id, person_id)
);

create table project_member (
    project_id uuid not null references project,
    person_id  uuid not null references person,
    role       text not null constraint project_member_role_check
        check (role in ('viewer', 'member', 'admin', 'owner')),
    created_at timestamptz not null default now(),
    constraint project_member_pkey primary key (project_id, person_id)
);

alter table project add column archived_at timestamptz;

-- Keys from before could do everything, and go on doing so. What is shown of a key in lists is `hint`.
alter table api_key
    add column hint text not null default 'sk-attune-…',
    add column scopes text[] not null default '{all,admin}',
    add column expires_at timestamptz,
    add constraint api_key_scopes_check check (scopes <@ '{all,files:read,files:write,jobs:read,jobs:write,models:read,models:write,inference,webhooks,usage:read,admin}'::text[] and scopes <> '{}');
alter table api_key alter column scopes drop default, alter column hint drop default;
create index api_key_by_project on api_key (project_id, api_key_id desc);

alter table organization_member enable row level security;
alter table organization_member force row level security;
create policy tenant on organization_member to attune_app
    using (organization_id = tenant_organization()) with check (organization_id = tenant_organization());
create policy platform on organization_member to attune_platform using (true) with check (true);
grant select, insert, update, delete on organization_member to attune_app, attune_platform;

select protect_child_table('project_member', 'project', 'project_id');

-- A person is seen by the organizations that they are in. Anybody may be let in, so anybody may be written down.
alter table person enable row level security;
alter table person force row level security;
create policy tenant on person for select to attune_app using (exists (
    select from organization_member as parent
    where parent.person_id = person.person_id and parent.organization_id = tenant_organization()));
create policy administration_makes on person for insert to attune_app with check (tenant_organization() is not null);
create policy platform on person to attune_platform using (true) with check (true);
grant select, insert on person to attune_app;
grant select, insert, update, delete on person to attune_platform;
