//! Fine-tuning jobs: preparation, estimates, results and the files of runs.

/// The estimate of a job.
pub mod estimate;
/// The preparation of a job from a request.
pub mod prepare;
/// The progress of runs, as metrics.
pub(crate) mod progress;
/// The quotas of a project.
pub mod quotas;
/// A succeeded job's metrics, as a file.
pub mod results;
/// The files that a run writes to the object store.
pub mod run_files;
/// The check that an offer can satisfy a job's limits.
pub mod satisfiable;
/// The starting point of a new job.
pub mod starting_point;
