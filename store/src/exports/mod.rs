//! Exports: other forms of an adapter, written by a node as a task.

/// Exports, for their users.
pub mod export;
/// The end of attempts and of exports.
pub mod export_end;
/// The objects of exports.
pub mod export_file;
/// The attempts at exports: placement, reports.
pub mod export_run;
/// The task of an export.
pub mod export_task;
