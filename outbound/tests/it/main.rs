//! Where URLs lead, judged by a connector that writes addresses down instead of calling them, and what a receiver on
//! this machine can and cannot do to the client.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod receiver;
mod urls;
