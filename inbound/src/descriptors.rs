//! Descriptors of the process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More is of no use, and some programs walk through all that there may be.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Raises the limit of open files to what the system allows, and returns it. The usual one of 1,024 is soon used up by
/// connections, each of which may need another one to the object store.
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
