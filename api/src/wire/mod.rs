//! Request and response bodies: one file per resource. Types of `domain` are not exposed to users; these are.

/// Adapters.
pub mod adapter;
/// The GPUs that would hold a job.
pub mod advice;
/// Base models.
pub mod base_model;
/// Batches.
pub mod batch;
/// The catalogue of instance types.
pub mod catalogue;
/// Permissions of checkpoints.
pub mod checkpoint_permission;
/// The limits of a job on its machine.
pub mod compute_limits;
/// Deployments.
pub mod deployment;
/// Estimates of jobs.
pub mod estimate;
/// Exports of adapters.
pub mod export;
/// Files.
pub mod file;
/// The request body for creating a job.
pub mod job;
/// Jobs, events and checkpoints in responses.
pub mod job_view;
/// The training method of a job.
pub mod method;
/// Models.
pub mod model;
/// Prices, price caps and budgets.
pub mod money;
/// Organizations, projects, users, API keys and the audit log.
pub mod organization;
/// Placements of jobs.
pub mod placement;
/// Previews of a file's rows.
pub mod preview;
/// Shares of projects in the queue of jobs.
pub mod project_queue;
/// The promotion of adapter versions.
pub mod promotion;
/// Types of query parameters.
pub mod query;
/// Reports on datasets.
pub mod report;
/// The status of an organization.
pub mod status;
/// The trainer's settings in responses.
pub mod trainer;
/// Uploads and their parts.
pub mod upload;
/// Usage and costs.
pub mod usage;
/// Webhook endpoints and deliveries.
pub mod webhook;
