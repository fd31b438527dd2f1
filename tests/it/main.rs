//! The tests across real processes: one program, with one module per topic.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod adapters;
mod attacks;
mod bad_input;
mod batches;
mod conformance;
mod continue_from;
mod cross_cutting;
mod dora_with_dropout;
mod estimates;
mod external;
mod house;
mod inference;
mod invariants;
mod kept_plan;
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
