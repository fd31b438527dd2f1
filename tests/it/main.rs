//! The tests across real processes: one program, with one module per topic.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod adapters;
mod attacks;
mod bad_input;
mod base_models;
mod batches;
mod cases;
mod conformance;
mod continue_from;
mod cross_cutting;
mod deployments;
mod estimates;
mod exports;
mod external;
mod house;
mod inference;
mod invariants;
mod limits;
mod openai_client;
mod pausing;
mod quantized;
mod recovery;
mod rows;
mod slurm;
mod storage;
mod telemetry;
mod tidy;
mod up;
mod webhooks;
mod workspace;
