//! Files: multipart uploads, ingestion of datasets, previews and reports.

/// A file out of an upload's parts.
pub mod assemble_upload;
/// A file out of a form.
pub mod file_form;
/// A file that came, checked and kept.
pub mod ingest;
/// Forms, bounded.
pub mod multipart;
/// A dataset, read in a child process under limits.
pub mod parser;
/// Rows of a file as they would be trained on.
pub mod preview;
/// What may be said of a file that is brought.
pub mod purpose;
/// What a dataset is like.
pub mod report;
/// The last reports.
pub mod report_cache;
/// Content on its way in.
pub mod staging;
/// What a project may store.
pub mod storage;
/// Places for work that renders and tokenises.
pub mod text_places;
