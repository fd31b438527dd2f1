//! The tests across real processes: one program, one module a theme.

mod bad_input;
mod house;
mod invariants;
mod openai_client;
mod recovery;
mod tidy;
mod up;
