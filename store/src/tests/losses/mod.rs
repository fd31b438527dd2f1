//! Tests of runs that were lost: what counts as an attempt, and what is refunded.

mod interrupted;
mod memory_ladder;
