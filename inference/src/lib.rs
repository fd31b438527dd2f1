//! Requests of models, without HTTP: the bodies of chat and text completions, the model of a request, its replica,
//! generation and metering. The API answers users with it, and the scheduler the rows of batches.
//!
//! The modules are listed in reading order.

/// The error object of a response.
pub mod error_body;

/// The errors of requests of models.
pub mod error;

/// The configuration of inference.
pub mod config;

/// A deserializer that does not accept an array for an object.
pub mod strict_json;

/// JSON values whose errors name the field.
pub mod json;

pub mod wire;

/// A complete answer of a model.
pub mod answer;

/// The usage of answers.
pub mod metering;

/// The traffic of adapter versions.
pub mod traffic;

/// A request to an adapter version, as its traffic counts it.
mod watched;

/// The text of an answer, for the comparison with a shadow's.
mod answer_copy;

pub mod pool;

/// Requests that wait for replicas of the same pool.
pub mod replica_waiters;

/// The context of requests of models.
pub mod context;

/// The resolution of a request's model.
pub mod resolve;

/// The replica that serves a base model.
mod replicas;

/// The availability of a model.
pub mod availability;

/// The size of answers that are collected.
mod collected;

/// The attempts at one request.
mod attempts;

/// One request to a replica, and its answer.
pub mod generation;

/// The caller of a request.
pub mod requester;

/// Copies of requests to the shadow of an alias.
mod shadow;

/// Chat completions.
pub mod chat;

/// Text completions.
pub mod completion;

/// Responses.
pub mod responses;

/// LoRAX's generation.
pub mod lorax;
