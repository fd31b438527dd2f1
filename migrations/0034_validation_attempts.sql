-- How often the check of a job's files has begun and has not come to an end. It is counted before the check, so that a
-- check that ends its own process is counted too, and taken back where something failed that is not the job's fault.
-- After a few the job fails: a message that can never be dealt with would come again for ever.
alter table job add column validation_attempts integer not null default 0 check (validation_attempts >= 0);
