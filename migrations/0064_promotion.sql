-- The promotion of adapter versions: canaries, shadows, rollback, and the traffic by which they are evaluated.

-- The version that the alias named before its last move, for a rollback. Null: none, or the last move was a rollback.
alter table adapter_alias add column previous_version_id uuid references adapter_version;

-- A version that answers a share of an alias's requests; the others are answered by the version that the alias names.
create table adapter_canary (
    adapter_canary_id  uuid primary key,
    project_id         uuid not null references project,
    adapter_id         uuid not null references adapter,
    alias              text not null,
    -- The version that the alias named when the canary began. The alias does not move while a canary runs.
    stable_version_id  uuid not null references adapter_version,
    adapter_version_id uuid not null references adapter_version,
    -- domain::traffic::canary: the share of the requests, and the rule that aborts.
    percent            smallint not null constraint adapter_canary_percent_check check (percent between 1 and 99),
    max_error_rate     double precision not null,
    max_latency_ratio  double precision not null,
    min_requests       integer not null,
    state              text not null default 'running'
        constraint adapter_canary_state_check check (state in ('running', 'promoted', 'aborted')),
    -- The reason why it was aborted.
    reason             text,
    started_at         timestamptz not null default now(),
    ended_at           timestamptz
);
create unique index adapter_canary_running on adapter_canary (adapter_id, alias) where state = 'running';
create index adapter_canary_by_alias on adapter_canary (adapter_id, alias, adapter_canary_id desc);
create index adapter_canary_by_version on adapter_canary (adapter_version_id) where state = 'running';

-- A version that answers copies of a share of an alias's requests, after their answers were sent. Only counts are kept.
create table adapter_shadow (
    adapter_shadow_id  uuid primary key,
    project_id         uuid not null references project,
    adapter_id         uuid not null references adapter,
    alias              text not null,
    adapter_version_id uuid not null references adapter_version,
    percent            smallint not null constraint adapter_shadow_percent_check check (percent between 1 and 100),
    -- Copies that were answered; those of them with the same answers; copies that failed; copies that were not sent,
    -- because too many were being answered or the answers were too long to be kept.
    compared           bigint not null default 0,
    equal              bigint not null default 0,
    errors             bigint not null default 0,
    skipped            bigint not null default 0,
    -- The sums of the lengths of both sides' answers, in tokens, over the compared copies.
    answered_tokens    bigint not null default 0,
    shadow_tokens      bigint not null default 0,
    -- The tokens of the copies' prompts. Copies are not charged.
    input_tokens       bigint not null default 0,
    started_at         timestamptz not null default now(),
    -- Null: it is active.
    ended_at           timestamptz
);
create unique index adapter_shadow_active on adapter_shadow (adapter_id, alias) where ended_at is null;
create index adapter_shadow_by_version on adapter_shadow (adapter_version_id) where ended_at is null;

-- The requests that a version answered in a minute, as every process that answers requests adds them up and writes them
-- every few seconds. Kept for two days.
create table adapter_traffic (
    project_id         uuid not null references project,
    adapter_version_id uuid not null references adapter_version,
    -- The canary that was running on the alias of the requests: it counts for both of its versions. Null: none was.
    adapter_canary_id  uuid references adapter_canary,
    minute             timestamptz not null,
    requests           bigint not null,
    -- Requests that failed for a reason other than the request itself or a lack of capacity.
    errors             bigint not null,
    input_tokens       bigint not null,
    output_tokens      bigint not null,
    -- Requests by where the replica found the adapter.
    from_memory        bigint not null,
    from_disk          bigint not null,
    from_store         bigint not null,
    -- Counts in the buckets of domain::traffic::latency: times to the first token, between tokens, and in the queue.
    first_token        bigint[] not null,
    per_token          bigint[] not null,
    queued             bigint[] not null,
    constraint adapter_traffic_key unique nulls not distinct (adapter_version_id, adapter_canary_id, minute)
);
create index adapter_traffic_by_minute on adapter_traffic (minute);
create index adapter_traffic_by_canary on adapter_traffic (adapter_canary_id) where adapter_canary_id is not null;

-- The sums of two arrays of counts, element by element.
create function add_counts(one bigint[], other bigint[]) returns bigint[] language sql immutable as
    $$ select array_agg(coalesce(a, 0) + coalesce(b, 0) order by n)
        from unnest(one, other) with ordinality as u(a, b, n) $$;
create aggregate sum_counts(bigint[]) (sfunc = add_counts, stype = bigint[], initcond = '{}');

select protect_tenant_table('adapter_canary');
select protect_tenant_table('adapter_shadow');
select protect_tenant_table('adapter_traffic');
select audit_table('adapter_canary', 'adapter.canary', 'adapter_canary_id');
select audit_table('adapter_shadow', 'adapter.shadow', 'adapter_shadow_id');
