-- The licence of a base model, as it was read at the import: an identifier of SPDX or of a model hub
-- (domain::license). Null: unknown.
alter table base_model add column license text;

-- The file whose rows an export's importance matrix is computed from; null: it has none. An export that is queued when
-- the file is deleted fails; one that runs has downloaded it, or keeps its content for two hours (loose_blob).
alter table export add column imatrix_file_id uuid references file;
