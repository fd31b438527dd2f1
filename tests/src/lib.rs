//! The harness: a tiny model, and a whole platform of real processes on this machine.
//!
//! Tests drive what a user drives: the `attune` command line and HTTP. Nothing here reaches into a process.

/// A model small enough to train in seconds, made here.
pub mod tiny;

/// An S3 server.
pub mod object_store;

/// `attune up` in a folder of its own, and its end.
pub mod platform;

/// A project of its own, and requests with its key.
pub mod tenant;

/// Notes a line that tells a figure, where a script collects them (`ATTUNE_FIGURES`).
///
/// # Panics
/// The file cannot be written.
#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
pub fn figure(line: &str) {
    use std::io::Write;
    let Some(path) = std::env::var_os("ATTUNE_FIGURES") else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{line}")).expect("the file of figures can be written");
}

/// Returns how often a test is to repeat what it does: `ATTUNE_ABUSE_REPEATS`, or else once.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
pub fn repeats() -> usize {
    std::env::var("ATTUNE_ABUSE_REPEATS").ok().and_then(|count| count.parse().ok()).unwrap_or(1)
}
