-- Nothing reads a job's hyperparameters as the request stated them: the answer shows those of its spec.
alter table job drop column requested;
