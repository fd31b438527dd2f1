//! The reconciler, the only path that repairs. It takes no input, runs on a signal and on a timer, and compares the
//! rows, the processes that the providers know, and the database's clock.
//!
//! - a run whose process has ended, or that stopped reporting while reports could arrive: its job is queued again, or
//!   fails after too many attempts
//! - a run whose process waits at its provider: its lease begins again, and its job shows the reason
//! - a job that is being cancelled or paused and whose trainer does not stop: its trainer is killed
//! - a process that no active row names: stopped; a node likewise: released
//! - a job or a replica whose message was lost: the message is sent again
//! - a replica that drains for too long: stopped
//! - an export whose process has ended or stopped reporting: queued again, or failed after too many attempts
//! - a job that was paused for lack of funds that are available again: queued again
//!
//! A node's row names its provider. The row is compared with that provider's processes, and its process is stopped
//! there. A node whose provider is not configured is left alone, and so is, for one pass, a node whose provider cannot
//! list its processes.

/// Lost runs, and replicas that end.
pub(crate) mod ended;
/// Lost exports.
mod exports;
/// The passes.
pub(crate) mod repair;
/// Processes and rows.
mod survey;
