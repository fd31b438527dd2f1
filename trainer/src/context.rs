//! The handles that the phases of a run share: network, events, scratch folder.

use std::path::PathBuf;

use attune_node::Platform;
use tokio::runtime::Handle;

use crate::report::EventSender;

/// The handles that the phases of a run share.
pub struct RunContext {
    /// The platform's client, which grants upload URLs for blobs.
    pub platform: Platform,
    /// The channel for events to the platform and stop requests from it.
    pub events: EventSender,
    /// The lease that fences the run's writes.
    pub run_lease: i64,
    /// The folder for temporary files. It is deleted when the run ends.
    pub scratch: PathBuf,
    /// The tokio runtime on which the tensor thread runs its requests.
    pub network: Handle,
}
