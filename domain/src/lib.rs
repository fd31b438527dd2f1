//! The words that every other room speaks.
//!
//! No I/O, no async, no clock, no randomness: nothing here can fail for an outside reason. Read in this order.

/// Ids that know what they name.
pub mod id;

/// Who may do what: roles and scopes.
pub mod access;

/// Amounts of memory and storage.
pub mod bytes;

/// A job's life: states, events, one table.
pub mod job;

/// Pauses between a job's attempts, and the setbacks that it survives.
pub mod retry;

/// What users can be told of outside.
pub mod event;

/// What a model is made of, from its `config.json`.
pub mod architecture;

pub mod text;
/// Which tensors such a model has.
pub mod weights;

/// The refusal of one field of a request.
pub mod bad_field;

/// What a job asks for, checked.
pub mod spec;

/// Variables that requests give to chat templates.
pub mod template_kwargs;

/// What an adapter in PEFT's form may be.
pub mod peft;

/// The contract with trainers.
pub mod run;

/// Where an adapter version comes from, and what it is made of.
pub mod manifest;

/// The contract with serving processes.
pub mod serve;

/// How much memory a run or a replica will take.
pub mod memory;

/// What providers offer, and which offer is taken.
pub mod offer;

/// How long a job will take.
pub mod pace;

/// A dataset's rows and the check of a whole file.
pub mod dataset;

/// A batch's life, and the lines of its file.
pub mod batch;
