-- What is swept is found by an index, the oldest first.
create index loose_blob_by_due on loose_blob (delete_after);
create index upload_part_by_object on upload_part (object_key);
create index upload_by_age on upload (created_at) where status <> 'pending';
create index job_given_up on job (finished_at) where state in ('failed', 'cancelled');
-- Whether a row names content is asked for each content that is let go of.
create index file_by_sha256 on file (sha256);
create index file_by_rows_sha256 on file (rows_sha256) where rows_sha256 is not null;
create index base_model_file_by_sha256 on base_model_file (sha256);
create index checkpoint_by_file on checkpoint using gin (files jsonb_path_ops);
create index adapter_version_by_file on adapter_version using gin (files jsonb_path_ops);
