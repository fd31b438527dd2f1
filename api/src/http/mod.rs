//! Requests and responses, whatever their route: bodies, pagination, downloads, tracing.

/// An adapter version as a tar archive.
pub mod archive;
/// The OpenAPI document in Swagger UI.
pub mod docs_ui;
/// Downloads of stored content.
pub mod download;
/// JSON bodies whose errors name the field.
pub mod json_body;
/// Lists and query parameters.
pub mod pagination;
/// IDs from paths, and callers' texts in messages.
pub mod path_id;
/// The state of the request that a task answers.
pub mod request_context;
/// A request's ID and span, the headers of responses, and the handling of panics.
pub mod trace;
