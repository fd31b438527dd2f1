-- A checkpoint's name ends its model's name with the last digits of its job's id; this finds the job by them.
create index job_by_model_name on job (project_id, right(job_id::text, 8));
