//! The front door: routes, keys, limits, the OpenAPI document, and the streams between users and replicas.
//!
//! A handler extracts, checks, makes one transaction, answers. SQL is `store`'s; the rules of a dataset, a job and a
//! shape are `domain`'s. Read in this order.

/// What can be set.
pub mod config;

/// What every handler has at hand.
pub mod app;

/// Every path, and what all of them go through.
pub mod router;

/// The frame of the OpenAPI document.
pub mod openapi;

/// A request's id, span, headers and net under panics.
pub mod request;

/// Who may call what: the table.
pub mod permissions;

/// Where every request is let in or turned away.
pub mod guard;

/// What a bearer is worth.
pub mod credentials;

/// Tokens of people, and the keys of those who sign them.
pub mod issuers;

/// Who calls.
pub mod caller;

/// Whose answer it is.
pub mod identify;

/// How often a key may ask.
pub mod throttle;

/// Requests that are safe to repeat.
pub mod idempotency;

/// The digest by which a repeated request is known.
pub mod body_print;

/// `If-Match`, `If-None-Match`, `ETag`.
pub mod conditions;

/// The OpenAPI document to be browsed.
pub mod documentation;

/// What a caller is told when something cannot be done.
pub mod error;

/// Ids and texts as callers gave them.
pub mod given;

/// JSON bodies whose refusals name the field.
pub mod body;

/// A list is no object.
mod strict;

/// Lists and queries.
pub mod page;

/// What webhooks need of the configuration.
pub mod webhooks;

/// The handlers.
pub mod routes;

/// What goes over the wire.
pub mod wire;

/// What a new job begins with.
pub mod job_beginning;

/// What a project may store.
pub mod storage;

/// Content on its way in.
pub mod incoming;

/// What may be said of a file that is brought.
pub mod file_terms;

/// Forms, bounded.
pub mod form;

/// A file out of a form.
pub mod file_form;

/// A dataset, read in a child process under limits.
pub mod parser;

/// A file that came, checked and kept.
pub mod file_check;

/// A file out of an upload's parts.
pub mod joining;

/// Rows of a file as they would be trained on.
pub mod preview;

/// Places for work that renders and tokenises.
pub mod text_places;

/// What answers use.
pub mod metering;

/// A succeeded job's metrics, as a file.
pub mod results;

/// What a request for a job comes to.
pub mod job_making;

/// What such a job would take.
pub mod estimate;

/// What a dataset is like.
pub mod report;

/// Places for heavy work, shared out among projects.
pub mod places;

/// What a run puts into the object store.
pub mod run_files;

/// A folder before it becomes a base model.
pub mod base_import;

/// Batches, from their file to their answers.
pub mod batch_work;

/// An adapter that was made elsewhere.
pub mod adapter_import;

/// Content on its way out.
pub mod content;

/// An adapter as one archive.
pub mod archive;

/// The replica that answers for a base.
pub mod replicas;

/// One request to a replica, and its answer.
pub mod generation;

/// The model that a request names, ready to be asked.
pub mod asked_model;

#[cfg(test)]
mod tests;
