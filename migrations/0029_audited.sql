-- The rest of what users change is noted in the audit log as well.
drop trigger if exists note_change on webhook_endpoint;
select audit_table('webhook_endpoint', 'webhook_endpoint', 'webhook_endpoint_id');
select audit_table('batch', 'batch', 'batch_id');
select audit_table('budget', 'budget', 'project_id');
select audit_table('checkpoint_permission', 'checkpoint.permission', 'checkpoint_permission_id');
-- About the version that the alias names, or named.
select audit_table('adapter_alias', 'adapter.alias', 'adapter_version_id');
-- Not that its parts are being joined: only what became of it.
create trigger note_change after insert or update of status on upload
    for each row execute function note_change('upload', 'upload_id');
