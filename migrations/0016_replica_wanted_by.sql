-- The project whose request had the replica started: it is told of what becomes of it. Null: nobody is.
alter table replica add column wanted_by uuid references project (project_id);
