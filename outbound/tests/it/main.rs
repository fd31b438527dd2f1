//! Tests of where URLs lead, with a connector that records addresses instead of connecting to them, and of a local
//! receiver that attacks the client.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod receiver;
mod urls;
