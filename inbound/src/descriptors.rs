//! The process's limit of open file descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The maximum limit of open files: more has no benefit, and some programs iterate over all possible descriptors.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Raises the limit of open files to what the system allows, and returns it. The common limit of 1,024 is soon
/// exhausted by connections, each of which may need another one to the object store.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = hard.min(MOST_DESCRIPTORS).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files could not be raised");
            soft
        }
    }
}
