//! Requests and responses, whatever their route: bodies, pagination, downloads, tracing.

/// An adapter as one archive.
pub mod archive;
/// The OpenAPI document to be browsed.
pub mod docs_ui;
/// Content on its way out.
pub mod download;
/// JSON bodies whose refusals name the field.
pub mod json_body;
/// Lists and queries.
pub mod pagination;
/// Ids and texts as callers gave them.
pub mod path_id;
/// The origin of the request that a task answers.
pub mod request_context;
/// A list is no object.
pub(crate) mod strict_json;
/// A request's id, span, headers and net under panics.
pub mod trace;
