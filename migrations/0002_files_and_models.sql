-- What a user brought: files (tenant's) and base models (the installation's).
--
-- Objects lie in the bucket under `blob/<sha256>`, so equal content is kept once and a key never changes its meaning.
create table file (
    file_id    uuid primary key,
    project_id uuid not null references project,
    filename   text not null,
    purpose    text not null constraint file_purpose_check check (purpose in ('fine-tune')),
    bytes      bigint not null,
    sha256     text not null,
    -- What the upload's one pass over the rows found; memory and batch size are reckoned from it.
    format     text not null constraint file_format_check check (format in ('chat', 'completion')),
    row_count  bigint not null,
    created_at timestamptz not null default now(),
    deleted_at timestamptz
);
create index file_by_project on file (project_id, file_id desc) where deleted_at is null;

create table base_model (
    base_model_id uuid primary key,
    -- As users name it: smollm2-135m-instruct.
    name          text not null constraint base_model_name_check check (name ~ '^[a-z0-9][a-z0-9._-]{0,95}$'),
    -- SHA-256 over the sorted (name, sha256) of its files: what nodes cache by.
    digest        text not null,
    -- domain::architecture::Architecture.
    architecture  jsonb not null,
    created_at    timestamptz not null default now(),
    constraint base_model_name_key unique (name)
);

-- A base model is a Hugging Face folder.
create table base_model_file (
    base_model_id uuid not null references base_model on delete cascade,
    name          text not null,
    sha256        text not null,
    bytes         bigint not null,
    primary key (base_model_id, name)
);
