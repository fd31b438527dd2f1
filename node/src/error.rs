//! What goes wrong on a node, a variant per thing that can be done about it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why something could not be fetched, kept or said.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No room is left: free some, or take another node.
    #[error("the disk is full: {} could not be written", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The disk said no for another reason.
    #[error("{}", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The other side could not be reached, or was busy: worth another try.
    #[error("{what}: the other side did not answer")]
    Away {
        /// What was asked.
        what: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// The other side is there, but cannot do it now: worth another try.
    #[error("{what}: the other side answered {status}")]
    Busy {
        /// What was asked.
        what: String,
        /// 408, 429 or 5xx.
        status: u16,
    },
    /// The platform has ended this run or replica, or given it to another: leave.
    #[error("{what}: it was ended, or given to another process")]
    Ended {
        /// What was asked.
        what: String,
    },
    /// A refusal that another try would only repeat.
    #[error("{what}: refused with {status}: {body}")]
    Refused {
        /// What was asked.
        what: String,
        /// 4xx.
        status: u16,
        /// The first part of the answer.
        body: String,
    },
    /// What came is not what was announced.
    #[error("{name}: {got} came where {want} was announced")]
    Changed {
        /// The file.
        name: String,
        /// Its announced digest or length.
        want: String,
        /// What it was.
        got: String,
    },
    /// A name that could lead out of its folder.
    #[error("'{0}' is not a plain file name")]
    BadName(String),
    /// An address, a token or a TLS set-up that cannot be used.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

impl NodeError {
    /// A disk's refusal, with a full disk told apart.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// Another try may go better.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Busy { .. })
    }
}
