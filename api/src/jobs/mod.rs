//! Fine-tuning jobs: preparation, estimates, results and the files of runs.

/// What such a job would take.
pub mod estimate;
/// What a request for a job comes to.
pub mod prepare;
/// A succeeded job's metrics, as a file.
pub mod results;
/// What a run puts into the object store.
pub mod run_files;
/// What a new job begins with.
pub mod starting_point;
