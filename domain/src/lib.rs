//! Shared types and contracts of the workspace: IDs, job states, specs, memory arithmetic.
//!
//! This crate has no I/O, no async, no clock and no randomness, so nothing in it can fail for an external reason. The
//! modules are listed in reading order.

/// Typed IDs with a prefix per resource.
pub mod id;

/// Access control: roles and scopes.
pub mod access;

/// Digests as text.
pub mod digest;

/// Amounts of memory and storage.
pub mod bytes;

/// The state machine of a job: states, events, transition table.
pub mod job;

/// The traffic of adapter versions, and canaries.
pub mod traffic;

/// Types of outgoing events (webhooks).
pub mod event;

/// Model architectures, read from `config.json`.
pub mod architecture;

pub mod text;
/// Names and shapes of a model's tensors.
pub mod weights;

/// The origin of a base model in a model hub.
pub mod hub_origin;

/// The licence of a base model.
pub mod license;

/// The error for one invalid field of a request.
pub mod bad_field;

/// The specification of a training job, and its validation.
pub mod spec;

/// Variables that requests pass to chat templates.
pub mod template_kwargs;

/// Requirements for imported PEFT adapters.
pub mod peft;

/// The number of replicas of a pool.
pub mod autoscale;

/// Exports of an adapter: their forms and options.
pub mod export;

/// The contract between the platform and a trainer.
pub mod run;

/// The manifest of an adapter version: its provenance and contents.
pub mod manifest;

/// The contract between the platform and a serving process.
pub mod serve;

/// The device and the number type of a computation.
pub mod placement;

/// Memory estimates for training runs and serving replicas.
pub mod memory;

/// The catalogue of GPUs and of cloud instance types with prices.
pub mod catalogue;

/// Offers of node providers, and the selection among them.
pub mod offer;

/// The plan of the queue: the jobs that start, the jobs that are stopped for others, and those that wait.
pub mod queue;

/// Estimates of a job's duration.
pub mod throughput;

/// Dataset rows, and the validation of a whole file.
pub mod dataset;

/// The state machine of a batch, and the lines of its input file.
pub mod batch;

#[cfg(test)]
mod names;
