//! The harness: a tiny model, and a whole platform of real processes on this machine.
//!
//! Tests drive what a user drives: the `attune` command line and HTTP. Nothing here reaches into a process.

/// A model small enough to train in seconds, made here.
pub mod tiny;

/// `attune up` in a folder of its own, and its end.
pub mod platform;
