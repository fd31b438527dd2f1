//! What can go wrong, by what a caller can do about it.

use attune_domain::{
    batch::IllegalBatchStep,
    job::{IllegalTransition, PauseReason},
    spec::Quantization,
};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a row or an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none, or it is another project's. Holds the noun.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// Another run holds the job now, or the run or replica has ended: drop what was to be written.
    #[error("the lease is stale")]
    Stale,
    /// Events are missing between what was taken and what came.
    #[error("the report starts at event {given}, but the next one is {expected}")]
    Gap {
        /// The number of the next event.
        expected: i64,
        /// What the report started with.
        given: i64,
    },
    /// A run's report names content that the run has not put. Holds the file's name.
    #[error("the run has not put the content of '{0}'")]
    NotGranted(String),
    /// The job's state does not take the event.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The batch's state does not take the event.
    #[error(transparent)]
    Batch(#[from] IllegalBatchStep),
    /// The project has as much unfinished work of this kind as it may have.
    #[error("the project has {most} unfinished {noun}, which is the most it may have")]
    TooManyUnfinished {
        /// Plural: `batches`.
        noun: &'static str,
        /// The cap.
        most: u32,
    },
    /// A named constraint refused the row; ask [`StoreError::on_constraint`].
    #[error("the constraint {constraint} refused the row")]
    Conflict {
        /// Its name in `migrations/`.
        constraint: String,
    },
    /// The database is away, or a query is wrong.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    /// The task holds a connection and asks for a second one.
    #[error("a task that holds a connection asks for a second one")]
    Nested,
    /// The schema could not be brought up to date.
    #[error("the schema could not be brought up to date")]
    Migrate(#[source] Cause),
    /// The message could not be put on its queue.
    #[error("the queue failed")]
    Queue(#[source] Cause),
    /// The object store is away, or refuses.
    #[error("the object store failed to {action} {key}")]
    Object {
        /// The verb: `get`.
        action: &'static str,
        /// Of what.
        key: String,
        /// What the service answered; `None`: nothing, or it broke off.
        refusal: Option<Refusal>,
        /// What its client said.
        #[source]
        cause: Cause,
    },
    /// A secret could not be sealed or opened. Holds why.
    #[error("the seal over a secret failed: {0}")]
    Seal(&'static str),
    /// An object is not what its key says.
    #[error("{name} has the digest {found} instead of {wanted}")]
    Digest {
        /// The file.
        name: String,
        /// By its row.
        wanted: String,
        /// By its content.
        found: String,
    },
    /// A column holds what this release does not understand.
    #[error("{column} holds something that cannot be read")]
    Corrupt {
        /// `job.spec`.
        column: &'static str,
        /// What the reader said.
        #[source]
        cause: Cause,
    },
}

/// An object store's answer when it does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP's.
    pub status: u16,
    /// S3's, or the service's own: `NotImplemented`.
    pub code: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.code, self.status)
    }
}

/// By which codes services say that they have no room. MinIO has the first two, Ceph and others the third.
const FULL: [&str; 4] = ["XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"];

impl Refusal {
    /// Whether the service says that its disk, or the bucket's quota, is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.status == 507 || FULL.contains(&self.code.as_str())
    }
}

impl StoreError {
    /// Whether the database or the object store says that it has no room for what was to be written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Object { refusal, .. } => refusal.as_ref().is_some_and(Refusal::is_full),
            Self::Database(error) => is_database_full(error),
            Self::Queue(cause) => {
                let mut causes =
                    std::iter::successors(Some(&**cause as &(dyn std::error::Error + 'static)), |e| e.source());
                causes.any(|cause| cause.downcast_ref().is_some_and(is_database_full))
            }
            _ => false,
        }
    }

    /// Whether the constraint of this name refused the row.
    #[must_use]
    pub fn on_constraint(&self, name: &str) -> bool {
        matches!(self, Self::Conflict { constraint } if constraint == name)
    }

    /// Whether a text holds a character that the database cannot keep: U+0000, as text or inside JSON.
    #[must_use]
    pub fn is_bad_text(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(|e| e.code());
        matches!(code.as_deref(), Some("22021" | "22P05"))
    }

    /// Whether the same call may succeed later though nothing about it changes: the database or the object store is away,
    /// is out of connections or space, or two transactions were in each other's way.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Object { .. } => true,
            Self::Database(sqlx::Error::Database(error)) => {
                // Classes of SQLSTATE: connection, conflict of transactions, resources, operator intervention, system.
                error
                    .code()
                    .is_some_and(|code| ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class)))
            }
            Self::Database(error) => matches!(
                error,
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::WorkerCrashed
            ),
            _ => false,
        }
    }

    /// An object that could not be had although nobody refused it: its stream broke off.
    pub fn object(action: &'static str, key: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Object { action, key: key.to_owned(), refusal: None, cause: Box::new(cause) }
    }
}

/// PostgreSQL's `disk_full`.
fn is_database_full(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).as_deref() == Some("53100")
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let constraint = error.as_database_error().and_then(|e| e.constraint()).map(str::to_owned);
        match constraint {
            Some(constraint) => Self::Conflict { constraint },
            None => Self::Database(error),
        }
    }
}

/// Reads a JSON column.
pub(crate) fn json<T: serde::de::DeserializeOwned>(
    column: &'static str,
    value: serde_json::Value,
) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|e| StoreError::Corrupt { column, cause: Box::new(e) })
}

/// Reads a column that names a quantization.
pub(crate) fn quantization(column: &'static str, name: &str) -> Result<Quantization, StoreError> {
    Quantization::from_name(name)
        .ok_or_else(|| StoreError::Corrupt { column, cause: format!("'{name}' names no quantization").into() })
}

/// Reads `job.pause_reason`.
pub(crate) fn pause_reason(name: &str) -> Result<PauseReason, StoreError> {
    PauseReason::from_name(name).ok_or_else(|| StoreError::Corrupt {
        column: "job.pause_reason",
        cause: format!("'{name}' is no reason").into(),
    })
}

/// Writes a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|e| StoreError::Corrupt { column, cause: Box::new(e) })
}
