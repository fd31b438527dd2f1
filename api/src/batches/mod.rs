//! Works on batches: many requests of a file, answered through the same code as those at the door. A worker holds a batch by
//! a lease; every answer is a row at once, so whoever takes over after a crash goes on where it was, and nothing that was
//! answered is asked or written twice.

/// One request and its answer.
pub mod ask;
/// The input file, line by line.
pub mod lines;
/// The output and the error file.
pub mod output;
/// The check of the whole file, before anything is asked.
pub mod validation;
/// A batch from its claim to its end.
pub mod work;
