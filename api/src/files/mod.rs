//! Files: multipart uploads, ingestion of datasets, previews and reports.

/// The assembly of a file from an upload's parts.
pub mod assemble_upload;
/// The upload of a file in a form.
pub mod file_form;
/// The check of an uploaded file, and its row.
pub mod ingest;
/// Multipart forms with bounds.
pub mod multipart;
/// The parser of datasets, a child process under limits.
pub mod parser;
/// The preview of a file's rows as they would be trained on.
pub mod preview;
/// The purpose, name and expiry of an uploaded file.
pub mod purpose;
/// The report on a dataset.
pub mod report;
/// The cache of reports.
pub mod report_cache;
/// The errors for rows that cannot be read or trained on.
pub mod row_errors;
/// The storage quota of a project.
pub mod storage;
/// The slots for work that renders and tokenizes.
pub mod text_places;
