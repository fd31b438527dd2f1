-- One trace from the request that created a job to its adapter.
alter table job
    -- The span of that request, a W3C traceparent of version 00, which the job's validation, starts and runs continue;
    -- null: no traces were exported.
    add column traceparent text check (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
