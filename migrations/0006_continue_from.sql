-- A job may begin with the factors of an adapter version instead of new ones. Its row stays when it is deleted, and it
-- cannot be deleted while a job that has not ended begins with it.
alter table job add column continue_from uuid
    constraint job_continue_from_fkey references adapter_version (adapter_version_id);
create index job_by_continue_from on job (continue_from) where continue_from is not null;

comment on column job_event.data is
    'The metrics of an event of type metrics; of an event of type message what its sentence says, for programs.';
