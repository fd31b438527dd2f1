//! Handlers, one file per resource. Each extracts, checks, makes one transaction, answers.

/// Names of adapters that move from version to version.
pub mod adapter_aliases;
/// Adapters, to be taken home.
pub mod adapters;
pub mod admin;
/// Base models and the blobs that they are made of.
pub mod base_models;
/// Many requests in one file.
pub mod batches;
/// Chat.
pub mod chat;
/// Who else may use a checkpoint.
pub mod checkpoint_permissions;
/// Plain text, gone on with.
pub mod completions;
/// Files.
pub mod files;
/// Whether the api is up.
pub mod health;
/// Events of fine-tuning jobs, as lists and as streams.
pub mod job_events;
/// Fine-tuning jobs.
pub mod jobs;
/// Models.
pub mod models;
/// What serving processes call.
pub mod replica;
/// What trainers call.
pub mod run;
/// Uploads: files in parts.
pub mod uploads;
/// What became of events at webhook endpoints.
pub mod webhook_deliveries;
/// Webhook endpoints.
pub mod webhooks;
