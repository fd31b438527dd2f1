//! What goes over the wire: one file per resource. Types of `domain` are not shown to users; these are.

/// Adapters.
pub mod adapter;
/// `"auto"`, or a number or a truth.
pub mod auto;
/// Base models.
pub mod base_model;
/// Batches.
pub mod batch;
/// Chat requests.
pub mod chat;
/// Chat answers, whole and in chunks.
pub mod chat_answer;
/// The messages of a chat.
pub mod chat_message;
/// Permissions of checkpoints.
pub mod checkpoint_permission;
/// Requests for completions of plain text.
pub mod completion;
/// Completions, whole and in chunks.
pub mod completion_answer;
/// What a job would take.
pub mod estimate;
/// Files.
pub mod file;
/// What an answer must look like and may call.
pub mod form;
/// Fields of OpenAI's bodies that change nothing.
pub mod ignored;
/// A job as it is asked for.
pub mod job;
/// Attune's own fields of a job: adapter, quantization, trainer.
pub mod job_fields;
/// A job as it is shown.
pub mod job_view;
/// Labels of jobs and batches.
pub mod metadata;
/// Models.
pub mod model;
/// Prices, caps and budgets.
pub mod money;
/// Projects, people, keys, the audit log.
pub mod organization;
/// Previews of a file's rows.
pub mod preview;
/// Lists in query parameters.
pub mod query;
/// Reports on datasets.
pub mod report;
/// What chats and completions ask of the drawing of tokens.
pub mod sampling;
/// Uploads and their parts.
pub mod upload;
/// Usage and costs.
pub mod usage;
/// Webhook endpoints and deliveries.
pub mod webhook;
