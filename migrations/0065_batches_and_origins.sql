-- Batches of responses.
alter table batch drop constraint batch_endpoint_check;
alter table batch add constraint batch_endpoint_check
    check (endpoint in ('/v1/chat/completions', '/v1/completions', '/v1/responses'));

-- failures, of 0046, counts the attempts without progress in a row: those that failed, and those whose worker was lost. An
-- answer sets it back to 0. A batch with too many of them has failed.

-- The hub that the files of a base model were downloaded from, as the user who imported it states:
-- domain::hub_origin::HubOrigin. Null: they came from elsewhere.
alter table base_model add column origin jsonb;
