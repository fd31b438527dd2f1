//! Errors, by how a caller can handle them.

use std::str::FromStr;

use attune_domain::{batch::IllegalBatchStep, digest::Sha256, job::IllegalTransition, spec::Quantization};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of reading or writing a row or an object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row does not exist, or is another project's. Holds the noun.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// Another run holds the job now, or the run or replica has ended: the write is dropped.
    #[error("the lease is stale")]
    Stale,
    /// Another scheduler leads: the transaction of this one is refused.
    #[error("another scheduler leads")]
    Deposed,
    /// Events are missing between the last stored one and the report's first.
    #[error("the report starts at event {given}, but the next one is {expected}")]
    Gap {
        /// The number of the next event.
        expected: i64,
        /// The number of the report's first event.
        given: i64,
    },
    /// A run's report names content that the run has not uploaded. Holds the file's name.
    #[error("the run has not uploaded the content of '{0}'")]
    NotGranted(String),
    /// The event is illegal in the job's state.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The event is illegal in the batch's state.
    #[error(transparent)]
    Batch(#[from] IllegalBatchStep),
    /// The project has the maximum of unfinished work of this kind.
    #[error("the project has {most} unfinished {noun}, the maximum")]
    TooManyUnfinished {
        /// The plural noun: `batches`.
        noun: &'static str,
        /// The maximum.
        most: u32,
    },
    /// A named constraint refused the row; see [`StoreError::on_constraint`].
    #[error("the constraint {constraint} refused the row")]
    Conflict {
        /// The constraint's name in `migrations/`.
        constraint: String,
    },
    /// The database is unavailable, or a query is wrong.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    /// The task holds a connection and requested a second one.
    #[error("a task that holds a connection requested a second one")]
    Nested,
    /// The schema could not be migrated.
    #[error("the schema could not be migrated")]
    Migrate(#[source] Cause),
    /// The message could not be pushed to its queue.
    #[error("the queue failed")]
    Queue(#[source] Cause),
    /// The object store is unavailable, or refused the request.
    #[error("the object store failed to {action} {key}")]
    Object {
        /// The verb: `get`.
        action: &'static str,
        /// The object's key.
        key: String,
        /// The service's error response; `None`: there was none, or the connection broke.
        refusal: Option<Refusal>,
        /// The client's error.
        #[source]
        cause: Cause,
    },
    /// A secret could not be sealed or opened. Holds the reason.
    #[error("a secret could not be sealed or opened: {0}")]
    Seal(&'static str),
    /// An object does not match its digest.
    #[error("{name} has the digest {found} instead of {wanted}")]
    Digest {
        /// The file's name.
        name: String,
        /// The digest in its row.
        wanted: Sha256,
        /// The digest of its content.
        found: Sha256,
    },
    /// A column holds a value that this release does not understand.
    #[error("{column} holds a value that this release does not understand")]
    Corrupt {
        /// The column: `job.spec`.
        column: &'static str,
        /// The parser's error.
        #[source]
        cause: Cause,
    },
}

/// An object store's error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The error code, S3's or the service's own: `NotImplemented`.
    pub code: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.code, self.status)
    }
}

/// Error codes for a full store. MinIO has the first two, Ceph and others the third.
const FULL: [&str; 4] = ["XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"];

impl Refusal {
    /// Returns whether the service reports that its disk, or the bucket's quota, is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.status == 507 || FULL.contains(&self.code.as_str())
    }
}

impl StoreError {
    /// Returns whether the database or the object store reports that it has no space for the write.
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

    /// Returns whether the constraint of this name refused the row.
    #[must_use]
    pub fn on_constraint(&self, name: &str) -> bool {
        matches!(self, Self::Conflict { constraint } if constraint == name)
    }

    /// Returns whether a text contains a character that PostgreSQL cannot store: U+0000, as text or inside JSON.
    #[must_use]
    pub fn is_bad_text(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(|e| e.code());
        matches!(code.as_deref(), Some("22021" | "22P05"))
    }

    /// Returns whether the same call may succeed later: the database or the object store is unavailable or out of
    /// connections or space, or two transactions conflicted.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Object { .. } => true,
            Self::Database(sqlx::Error::Database(error)) => {
                // SQLSTATE classes: connection, transaction conflict, resources, operator intervention, system.
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

    /// Creates an object error without a response of the service, such as a broken stream.
    pub fn object(action: &'static str, key: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Object { action, key: key.to_owned(), refusal: None, cause: Box::new(cause) }
    }
}

/// Returns whether the error is PostgreSQL's `disk_full`.
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

/// Parses a JSON column.
pub(crate) fn json<T: serde::de::DeserializeOwned>(
    column: &'static str,
    value: serde_json::Value,
) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|e| StoreError::Corrupt { column, cause: Box::new(e) })
}

/// Parses a column that names a quantization.
pub(crate) fn quantization(column: &'static str, name: &str) -> Result<Quantization, StoreError> {
    Quantization::from_name(name)
        .ok_or_else(|| StoreError::Corrupt { column, cause: format!("'{name}' names no quantization").into() })
}

/// Parses a column that holds a text such as the name of an enum's variant; `noun` is its type's, for the error.
pub(crate) fn named<T: FromStr>(column: &'static str, name: &str, noun: &str) -> Result<T, StoreError> {
    name.parse().map_err(|_| StoreError::Corrupt { column, cause: format!("'{name}' is no {noun}").into() })
}

/// Serializes a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|e| StoreError::Corrupt { column, cause: Box::new(e) })
}
