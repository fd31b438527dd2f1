//! The errors of a node process, a variant for each possible reaction.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The reason why a request, a download or a disk operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The disk is full: free space, or use another node.
    #[error("the disk is full: {} could not be written", path.display())]
    DiskFull {
        /// The path that was being written.
        path: PathBuf,
    },
    /// Another disk error.
    #[error("{}", path.display())]
    Io {
        /// The path that was being read or written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The server could not be reached or did not respond: retry.
    #[error("{what}: no response from the server")]
    Away {
        /// The request that failed.
        what: String,
        /// The network error.
        #[source]
        source: reqwest::Error,
    },
    /// The server is temporarily unable to respond: retry.
    #[error("{what}: the server returned {status}")]
    Busy {
        /// The request that failed.
        what: String,
        /// The status: 408, 429 or 5xx; of the object store also 409 or 412.
        status: u16,
    },
    /// The platform has ended this run or replica, or assigned it to another process: exit.
    #[error("{what}: the run or replica was ended, or assigned to another process")]
    Ended {
        /// The request that failed.
        what: String,
    },
    /// An error that a retry would only repeat.
    #[error("{what}: refused with {status}: {body}")]
    Refused {
        /// The request that failed.
        what: String,
        /// The status: 4xx, or 200 with a body that cannot be parsed.
        status: u16,
        /// The beginning of the response's body.
        body: String,
    },
    /// The received content is not the announced one.
    #[error("{name}: received {got}, expected {want}")]
    Changed {
        /// The file's name.
        name: String,
        /// The announced digest or length.
        want: String,
        /// The actual digest or length.
        got: String,
    },
    /// A name that could lead outside its folder.
    #[error("'{0}' is not a plain file name")]
    BadName(String),
    /// An invalid address, token or TLS configuration.
    #[error("the HTTP client cannot be created: {0}")]
    Client(String),
}

impl NodeError {
    /// Converts an I/O error, and distinguishes a full disk.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// Returns whether a retry may succeed.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Busy { .. })
    }
}
