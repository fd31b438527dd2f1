-- A run that ran out of memory is followed by one that needs less, or has more: domain::memory::ladder.
alter table job
    -- domain::run::Plan of the next run, after one that ran out of memory; null: that of the last run. The claim of the
    -- next run clears it.
    add column rung_plan    jsonb,
    -- The job runs only where more memory than this is free, in bytes: a run on an offer with as much ran out of
    -- memory, with the smallest plan that the job allows.
    add column memory_above bigint;

-- run.outcome has one more value: out_of_memory.

-- A line of kind `refund` takes back a part of the line of its run: its figures are negative, so that sums over both
-- are what is charged. A run that ran out of memory is refunded its node's time and the steps after the last
-- checkpoint; a run that ends with the adapter of its best validation, the steps after that one.
alter table usage drop constraint usage_kind_check;
alter table usage add constraint usage_kind_check check (kind in ('training', 'completions', 'refund'));
create index usage_by_run on usage (run_id) where run_id is not null;
