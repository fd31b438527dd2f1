//! A stored file's rows, for the API and the scheduler: streamed from the object store to a thread that parses,
//! tokenizes and counts them, in constant memory. Knows no route and no task: functions take the object store, a
//! digest, a model and a policy.

/// Content of the object store, read on a thread of its own while it streams.
pub mod blob;

/// The rows of a file while its content streams.
pub mod rows;

/// Refusals of rows and files, with the codes that the API documents.
pub mod refusal;

/// One pass over a job's file: token counts, and the effect of the job's policy.
pub mod scan;

/// A base model's text files, opened in memory.
pub mod base_text;

/// A base model's text files, cached in a folder.
pub mod text_folder;
