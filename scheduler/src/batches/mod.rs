//! The execution of batches: many requests of a file, answered by the code that answers HTTP requests
//! (`attune_inference`). A worker holds a batch by a lease. It stores every answer as a row immediately, so that a
//! worker that takes over after a crash resumes there, and no answered request is executed or stored twice.

/// One request and its answer.
mod ask;
/// The errors of a worker.
mod error;
/// The input file, line by line.
mod lines;
/// The output file and the error file.
mod output;
/// The validation of the whole file, before any request is executed.
mod validation;
/// A batch from its claim to its end.
pub(crate) mod work;
