//! The execution of batches: many requests of a file, answered by the code that answers HTTP requests
//! (`attune_inference`), one model after the other. A worker holds a batch by a lease. It stores every answer as a row
//! immediately, so that a worker that takes over after a crash resumes there, and no answered request is executed or
//! stored twice. Attempts without progress are counted in the batch's row, and end it.

/// One request and its answer.
mod ask;
/// The number of concurrent requests of a batch.
mod capacity;
/// The context of the workers.
pub(crate) mod context;
/// The errors of a worker.
pub(crate) mod error;
/// A batch that a worker holds.
mod held;
/// The input file, line by line.
mod lines;
/// The output file and the error file.
mod output;
/// The order of the requests.
mod plan;
/// The execution of the requests.
mod rows;
/// The validation of the whole file, before any request is executed.
mod validation;
/// A batch from its claim to its end.
pub(crate) mod work;
