-- A job between two attempts. An attempt that brought nothing new is followed by a pause, longer each time, so that a
-- lack that passes has time to pass. Attempts that ended through no fault of the job's (nobody could report, the node's
-- disk was full) are counted apart from those that may have: far more of them are allowed.
alter table job add column retry_at timestamptz;
alter table job add column setbacks integer not null default 0;
