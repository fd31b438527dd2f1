//! What goes over the wire: one file per resource. Types of `domain` are not shown to users; these are.

/// Adapters.
pub mod adapter;
/// `"auto"`, or a number or a truth.
pub mod auto;
/// Base models.
pub mod base_model;
/// Batches.
pub mod batch;
/// Permissions of checkpoints.
pub mod checkpoint_permission;
/// What a job would take.
pub mod estimate;
/// Files.
pub mod file;
pub mod inference;
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
/// Uploads and their parts.
pub mod upload;
/// Usage and costs.
pub mod usage;
/// Webhook endpoints and deliveries.
pub mod webhook;
