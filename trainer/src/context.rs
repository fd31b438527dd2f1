//! The handles that the phases of a run share beside tensors.

use std::path::PathBuf;

use attune_node::Platform;
use tokio::runtime::Handle;

use crate::report::Voice;

/// The handles that the phases of a run share.
pub struct RunContext {
    /// The platform, which grants places for blobs.
    pub platform: Platform,
    /// The way for events to the platform, and for stops from it.
    pub voice: Voice,
    /// The lease that fences the run's writes.
    pub run_lease: i64,
    /// A folder for files that are written on the way; it is deleted with the run.
    pub scratch: PathBuf,
    /// The runtime for requests from the tensors' thread.
    pub network: Handle,
}
