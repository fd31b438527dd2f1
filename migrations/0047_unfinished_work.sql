-- A project's unfinished jobs and batches are counted when another one is asked for.
create index job_unfinished_by_project on job (project_id) where state not in ('succeeded', 'failed', 'cancelled');
create index batch_unfinished_by_project on batch (project_id)
    where state in ('validating', 'in_progress', 'finalizing', 'cancelling');
