//! Fine-tuning jobs: preparation, estimates, results and the files of runs.

/// The estimate of a job.
pub mod estimate;
/// The preparation of a job from a request.
pub mod prepare;
/// A succeeded job's metrics, as a file.
pub mod results;
/// The files that a run writes to the object store.
pub mod run_files;
/// The starting point of a new job.
pub mod starting_point;
