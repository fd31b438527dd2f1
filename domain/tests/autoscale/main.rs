//! The autoscaler over simulated pools, and under a recorded load.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod pool;
mod random;
mod simulation;
mod trace;
