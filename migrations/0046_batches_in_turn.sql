-- Workers take batches of projects in turn, and a batch whose work breaks off is not taken again at once, nor for ever.
alter table batch
    -- Times in a row that work on it broke off; an answer sets it back.
    add column failures       integer not null default 0,
    -- Not taken before then: the pause after a failure.
    add column next_try_at    timestamptz not null default now(),
    -- When a worker last gave it back; the order among batches of projects that have equally many workers.
    add column last_worked_at timestamptz;

-- Webhook attempts under way are counted by project, so that projects take turns.
create index webhook_delivery_leased on webhook_delivery (project_id) where state = 'pending' and leased_until is not null;
