-- Files that are no datasets: what a batch reads and writes, a job's results, and what a user just keeps.
alter table file drop constraint file_purpose_check;
alter table file add constraint file_purpose_check check (purpose in
    ('fine-tune', 'fine-tune-results', 'batch', 'batch_output', 'user_data', 'evals'));

-- Datasets come in more forms than lines of chat, and some may be read but not learnt from.
alter table file drop constraint file_format_check;
alter table file add constraint file_format_check check (format in ('chat', 'completion', 'text', 'preference'));
alter table file alter column format drop not null;
alter table file alter column row_count drop not null;
alter table file
    -- How it was written: jsonl, json, csv, tsv or parquet; gzip or zstd around it; and the shape of its rows.
    add column container   text,
    add column compression text,
    add column shape       text,
    -- Its rows as trainers read them, one JSON object a line, where that is other content than what was uploaded.
    add column rows_sha256 text,
    add column rows_bytes  bigint,
    -- It is out of sight from then on; the sweep lets its content go.
    add column expires_at  timestamptz;

update file set container = 'jsonl', shape = format;

alter table file add constraint file_dataset_check check (
    (format is null) = (row_count is null) and (format is null) = (container is null) and (format is null) = (shape is null)
    and (format is not null or compression is null and rows_sha256 is null)
    and (rows_sha256 is null) = (rows_bytes is null));
create index file_expiring on file (expires_at) where expires_at is not null and deleted_at is null;
