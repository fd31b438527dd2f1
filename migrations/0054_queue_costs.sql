-- The planner reads the queue and the usage of each project again and again, next to any number of finished jobs.

-- The node time of the runs of the last days, from which the shares of projects are computed: this index alone is read.
create index usage_node_time on usage (used_at) include (project_id, node_ms) where kind = 'training';

-- It was read for the shares, and is read by nothing else.
drop index run_ended;
