//! All SQL and all object keys. One file per aggregate; the rows are the truth.
//!
//! Functions take a connection and never a pool, so the caller owns the transaction; reads of what a user made ask for
//! the user's project. Read in this order.

/// Where the database and the object store are.
pub mod config;

/// What can go wrong, by what a caller can do about it.
pub mod error;

/// Connections of the pool, and how transactions begin and end.
pub mod connection;

/// The pool, the schema, the advisory lock.
pub mod db;

/// New ids and new secrets: the clock and the dice live here.
pub mod mint;

/// The object store, and the names of what lies in it.
pub mod objects;

/// Messages to the scheduler, kept or lost together with the rows they name.
pub mod queue;

/// Organizations and projects.
pub mod tenant;

/// Secrets that let a program in.
pub mod api_key;

/// People, and what they are in organizations and projects.
pub mod member;

/// Who changed what.
pub mod audit;

/// Requests that are safe to repeat.
pub mod idempotency;

/// Versions of rows, for changes that must not be lost.
pub mod version;

/// Files that users brought.
pub mod file;

/// Files that come in parts.
pub mod upload;

/// Base models: Hugging Face folders.
pub mod base_model;

/// How tuned models and their checkpoints are named.
pub mod model_name;

/// Adapter versions, and what a model's name stands for.
pub mod adapter;

/// How an adapter's next version comes to be.
pub mod adapter_version;

/// Where such versions come from: `attune_manifest.json`.
mod manifest;

/// Names that move from version to version.
pub mod adapter_alias;

/// Events that users can be told of outside.
pub mod outbox;

/// Jobs, their one way of changing state, their events.
pub mod job;

/// Jobs that wait, and jobs that go on again.
pub mod pausing;

/// Why a queued job is not placed yet.
pub mod waiting;

/// What was used, and what it cost.
pub mod usage;

/// What jobs and projects may cost.
pub mod money;

/// The metrics of a job, step by step.
pub mod results;

/// What the user can read of a job's life.
pub mod job_event;

/// Checks of jobs' files.
pub mod validation;

/// Attempts at a job, from the claim to the end.
pub mod run;

/// Runs that are given up, and what becomes of their jobs.
pub mod loss;

/// Everything that a trainer is told, put together from the rows.
pub mod run_spec;

/// What a trainer's report changes.
pub mod report;

/// States from which a run can go on, and that answer like a tuned model.
pub mod checkpoint;

/// Who else may use a checkpoint.
pub mod checkpoint_permission;

/// Content in the object store: where to put it, when to throw it away.
pub mod blob;

/// Clears up what is over.
pub mod sweep;

/// What a project has stored.
pub mod storage;

/// Content that a project may name by its digest.
pub mod project_blob;

/// Content that a run may name in its reports.
pub mod run_blob;

/// Memory that is reserved with a provider.
pub mod node;

/// What providers offer, and how fast it is.
pub mod offer;

/// Serving processes.
pub mod replica;

/// Requests of a file, and their answers.
pub mod batch;

/// The workers' side of batches: who works on which, and for how long.
pub mod batch_queue;

/// Caps on the unfinished work of one project.
pub mod unfinished;

/// Secrets that must be read again.
pub mod seal;

/// Where projects want to be told of events.
pub mod webhook_endpoint;

/// What became of an event at an endpoint.
pub mod webhook_delivery;

/// How events get there: the scheduler's side.
pub mod webhook_queue;

/// Rows for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;
