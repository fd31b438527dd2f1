-- Why a queued job is not placed yet, in a sentence; null: nobody has looked, or it need not wait.
alter table job add column waiting_reason text;
