//! Handlers, one file per resource. Each extracts and checks the request, runs one transaction, and responds.

/// Aliases of adapter versions.
pub mod adapter_aliases;
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
/// Files.
pub mod files;
/// The health check.
pub mod health;
/// Events of fine-tuning jobs, as lists and as streams.
pub mod job_events;
/// Fine-tuning jobs.
pub mod jobs;
/// Models.
pub mod models;
/// Endpoints that serving processes call.
pub mod replica;
/// Endpoints that trainers call.
pub mod run;
/// Uploads: files in parts.
pub mod uploads;
/// Deliveries of events to webhook endpoints.
pub mod webhook_deliveries;
/// Webhook endpoints.
pub mod webhooks;
