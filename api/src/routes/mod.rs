//! Handlers, one file per resource. Each extracts and checks the request, runs one transaction, and responds. A file
//! also declares the policies of its operations.

use crate::policy::Policy;

/// Aliases of adapter versions.
pub mod adapter_aliases;
/// The promotion of an alias.
pub mod adapter_promotion;
/// The residency of adapter versions.
pub mod adapter_residency;
/// Adapters and their versions.
pub mod adapters;
pub mod admin;
/// Base models and their blobs.
pub mod base_models;
/// Batches of requests.
pub mod batches;
/// Chat completions.
pub mod chat;
/// Permissions of other projects to use a checkpoint.
pub mod checkpoint_permissions;
/// Text completions.
pub mod completions;
/// Deployments.
pub mod deployments;
/// Exports of adapters.
pub mod exports;
/// Files.
pub mod files;
/// The health check.
pub mod health;
/// Events of fine-tuning jobs, as lists and as streams.
pub mod job_events;
/// The placement of a fine-tuning job.
pub mod job_placement;
/// Fine-tuning jobs.
pub mod jobs;
/// LoRAX's endpoints.
pub mod lorax;
/// Models.
pub mod models;
/// Endpoints that serving processes call.
pub mod replica;
/// Responses of OpenAI's Responses API.
pub mod responses;
/// Endpoints that trainers call.
pub mod run;
/// Uploads: files in parts.
pub mod uploads;
/// Deliveries of events to webhook endpoints.
pub mod webhook_deliveries;
/// Webhook endpoints.
pub mod webhooks;

/// The policies of all operations, one list per file. A test compares them with the OpenAPI document.
pub(crate) const POLICIES: &[&[Policy]] = &[
    adapter_aliases::POLICIES,
    adapter_promotion::POLICIES,
    adapter_residency::POLICIES,
    adapters::POLICIES,
    admin::api_keys::POLICIES,
    admin::audit_logs::POLICIES,
    admin::budget::POLICIES,
    admin::catalogue::POLICIES,
    admin::organizations::POLICIES,
    admin::project_queue::POLICIES,
    admin::project_users::POLICIES,
    admin::projects::POLICIES,
    admin::status::POLICIES,
    admin::usage::POLICIES,
    admin::users::POLICIES,
    base_models::POLICIES,
    batches::POLICIES,
    chat::POLICIES,
    checkpoint_permissions::POLICIES,
    completions::POLICIES,
    deployments::POLICIES,
    exports::POLICIES,
    files::POLICIES,
    health::POLICIES,
    job_events::POLICIES,
    job_placement::POLICIES,
    jobs::POLICIES,
    lorax::POLICIES,
    models::POLICIES,
    responses::POLICIES,
    uploads::POLICIES,
    webhook_deliveries::POLICIES,
    webhooks::POLICIES,
];
