//! The process of a run at its provider: the kinds of its waits, and the causes of its end. Events of jobs name them.

use strum::IntoStaticStr;

/// The kind of the reason why a process has not started yet, or is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum WaitKind {
    /// The cluster has accepted the process, and has not chosen a node yet.
    Starting,
    /// Other processes are ahead in the cluster's queue.
    Queued,
    /// A quota or a limit of the cluster's queue is exhausted.
    Quota,
    /// An operator of the cluster, or a gate, holds the process.
    Held,
    /// No node has what the process requests.
    Unschedulable,
    /// The cluster starts a node for the process.
    NodeStarting,
    /// The container's image cannot be pulled.
    ImagePull,
    /// The node fetches the image and creates the container.
    ContainerCreating,
    /// The node cannot create the container.
    ContainerError,
}

impl WaitKind {
    /// Returns the name in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The cause of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum EndCause {
    /// The program ended on its own, or the cause is unknown.
    Program,
    /// The memory of the node, or the process's limit, was exhausted.
    OutOfMemory,
    /// The program ran until the time limit of its provider.
    Deadline,
    /// The node is drained, shuts down, or ran short of something.
    Evicted,
    /// The provider ended the process for another one's sake.
    Preempted,
    /// The node failed or was deleted.
    NodeFailed,
    /// The provider ended the process for another reason of its own.
    Disrupted,
    /// The process received SIGTERM and ended on it.
    Interrupted,
    /// An operator of the cluster ended the process.
    Stopped,
    /// The image could not be pulled until the time limit.
    ImagePull,
    /// The program was never started.
    NotStarted,
}

impl EndCause {
    /// Returns the name in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns whether the job, or the export, may be at fault.
    #[must_use]
    pub const fn may_be_the_jobs(self) -> bool {
        matches!(self, Self::Program | Self::OutOfMemory | Self::Deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_the_events() {
        assert_eq!([WaitKind::ImagePull.name(), WaitKind::Unschedulable.name()], ["image_pull", "unschedulable"]);
        assert_eq!([EndCause::OutOfMemory.name(), EndCause::NodeFailed.name()], ["out_of_memory", "node_failed"]);
    }
}
