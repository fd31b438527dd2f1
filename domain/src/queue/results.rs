//! The output of the planner.

use super::reasons::WaitReason;
use crate::id::JobId;

/// The plan of the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueuePlan {
    /// The jobs to start now, in order, each with an index into the offers.
    pub starts: Vec<(JobId, usize)>,
    /// The running jobs to stop at a checkpoint, each with the waiting job that starts in its place. That job is
    /// started by a later plan, when they have stopped.
    pub preemptions: Vec<(JobId, JobId)>,
    /// The jobs that wait, in order.
    pub waits: Vec<Wait>,
}

/// A job that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    /// The job's ID.
    pub job: JobId,
    /// The position in the queue, from 1.
    pub position: u32,
    /// The reason.
    pub reason: WaitReason,
    /// The expected time of the start; `None` if no time can be expected.
    pub estimated_start: Option<f64>,
}
