//! The test harness: a tiny model, and a whole platform of real processes on this machine.
//!
//! Tests use the interfaces that a user has, the `attune` command line and HTTP, and no internals of a process.

/// A generated model that is small enough to train in seconds.
pub mod tiny;

/// An S3 server.
pub mod object_store;

/// `attune up` on its own data folder.
pub mod platform;

/// A tenant with a project of its own.
pub mod tenant;

/// Returns the SHA-256 in lower-case hex.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Appends a figure's line to the file in which a script collects them (`ATTUNE_FIGURES`).
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

/// Returns the number of repetitions of a test: `ATTUNE_ABUSE_REPEATS`, or 1.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
pub fn repeats() -> usize {
    std::env::var("ATTUNE_ABUSE_REPEATS").ok().and_then(|count| count.parse().ok()).unwrap_or(1)
}
