//! The errors of requests of models, for the API and for the rows of batches.
//!
//! The cause of `InferenceError::Internal` is only logged.

use attune_domain::bad_field::BadField;
use attune_process::error_chain::chain;
use attune_store::error::StoreError;
use http::StatusCode;

use crate::error_body::{ErrorBody, ErrorKind};

/// The `Retry-After` while the database is unavailable, in seconds.
const DATABASE_RETRY_SECONDS: u64 = 5;

/// The message of an internal error.
pub const INTERNAL_MESSAGE: &str = "The server had an error while it processed the request.";

/// The reason why a request of a model failed.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// An invalid parameter.
    #[error("{message}")]
    Invalid {
        /// The parameter's path.
        param: Option<String>,
        /// The stable, machine-readable code.
        code: &'static str,
        /// The message.
        message: String,
    },
    /// A model that does not exist, or that belongs to another project.
    #[error("{}", model_message(.0))]
    ModelNotFound(String),
    /// A failure of the object store, or a database without disk space.
    #[error("{}", storage_message(what, cause))]
    StorageRefused {
        /// The affected content, such as `file`.
        what: &'static str,
        /// The store's error.
        #[source]
        cause: StoreError,
    },
    /// A model for which no replica is available in time, or whose replica failed.
    #[error("{message}")]
    ReplicaUnavailable {
        /// The message, with the reason.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// A model whose replica was not ready in time: it still starts, or waits for a machine.
    #[error("{message}")]
    NotReady {
        /// The message, with the time.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// A temporary lack of capacity.
    #[error("{message}")]
    Busy {
        /// The message, with the limit.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// A project with too many requests in progress for one model.
    #[error("{message}")]
    TooManyAnswers {
        /// The message, with the limit.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// An internal error. The cause is only logged.
    #[error("{}", INTERNAL_MESSAGE)]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Returns the message for a model that does not exist, or that belongs to another project.
#[must_use]
pub fn model_message(name: &str) -> String {
    format!("The model '{name}' does not exist, or this key has no access to it.")
}

/// Describes a failure of the store by the store's own answer; reports a full disk only if the store does.
#[must_use]
pub fn storage_message(what: &str, cause: &StoreError) -> String {
    match cause {
        StoreError::Object { refusal: Some(refusal), .. } if refusal.is_full() => {
            format!("The object store has no space for the {what}: it answered {refusal}. Nothing was stored.")
        }
        StoreError::Object { refusal: Some(refusal), .. } => {
            format!("The object store failed on the {what}: it answered {refusal}.")
        }
        StoreError::Object { refusal: None, .. } => {
            format!("The object store failed on the {what}: it did not answer.")
        }
        _ if cause.is_full() => {
            format!("The database has no space for the {what}: its disk is full. Nothing was stored.")
        }
        _ => format!("The {what} could not be stored. Nothing was stored."),
    }
}

impl InferenceError {
    /// Creates an error for an invalid parameter that has no code of its own.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), code: "invalid_value", message: message.into() }
    }

    /// Creates an error for a parameter value that is not supported.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), code: "unsupported_parameter", message: message.into() }
    }

    /// Creates an internal error.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// Returns whether the same request may succeed later, unchanged.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::StorageRefused { .. }
            | Self::ReplicaUnavailable { .. }
            | Self::NotReady { .. }
            | Self::Busy { .. } => true,
            Self::Internal(cause) => match cause.downcast_ref::<StoreError>() {
                Some(error) => error.is_passing(),
                None => cause.is::<std::io::Error>(),
            },
            Self::Invalid { .. } | Self::ModelNotFound(_) | Self::TooManyAnswers { .. } => false,
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { code, .. } => ErrorKind::invalid(code),
            Self::ModelNotFound(_) => ErrorKind::MODEL_NOT_FOUND,
            Self::StorageRefused { cause, .. } => ErrorKind::storage(cause.is_full()),
            Self::ReplicaUnavailable { .. } | Self::NotReady { .. } => ErrorKind::MODEL_UNAVAILABLE,
            Self::Busy { .. } => ErrorKind::OVERLOADED,
            Self::TooManyAnswers { .. } => ErrorKind::TOO_MANY_ANSWERS,
            Self::Internal(_) => ErrorKind::INTERNAL,
        }
    }

    /// Returns the HTTP status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.kind().status
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::ModelNotFound(_) => Some("model".into()),
            _ => None,
        }
    }

    /// Returns the error as callers receive it, in a body, in a stream or in a batch's row.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        self.kind().body(self.to_string(), self.param())
    }

    /// Logs an internal failure; errors of the caller are not logged.
    pub fn log(&self) {
        let cause = match self {
            Self::Internal(cause) => Some(cause.as_ref() as &(dyn std::error::Error + 'static)),
            Self::StorageRefused { cause, .. } => Some(cause as &(dyn std::error::Error + 'static)),
            _ => None,
        };
        if let Some(cause) = cause {
            log_cause(cause);
        }
    }
}

/// Logs the cause of a failed request.
pub fn log_cause(cause: &(dyn std::error::Error + 'static)) {
    tracing::error!("the request failed: {}", chain(cause));
}

impl From<StoreError> for InferenceError {
    fn from(error: StoreError) -> Self {
        match error {
            other if other.is_bad_text() => Self::Invalid {
                param: None,
                code: "invalid_value",
                message: "A string in the request contains the character U+0000, which is not allowed.".into(),
            },
            other if other.is_full() => Self::StorageRefused { what: "change", cause: other },
            other @ StoreError::Object { .. } => Self::StorageRefused { what: "content", cause: other },
            other if other.is_passing() => {
                tracing::error!("the database is unavailable: {}", chain(&other));
                Self::Busy {
                    message: "The database is unavailable. Retry in a few seconds.".into(),
                    retry_after_seconds: DATABASE_RETRY_SECONDS,
                }
            }
            other => Self::internal(other),
        }
    }
}

impl From<BadField> for InferenceError {
    fn from(field: BadField) -> Self {
        Self::invalid(field.param, field.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_status_code_and_parameter() {
        let missing = InferenceError::ModelNotFound("m".into());
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        let body = missing.body().error;
        assert_eq!((body.code, body.param.as_deref()), (Some("model_not_found"), Some("model")));
        assert_eq!(body.message, "The model 'm' does not exist, or this key has no access to it.");
        let internal = InferenceError::internal("password=hunter2").body().error;
        assert_eq!((internal.message.as_str(), internal.r#type), (INTERNAL_MESSAGE, "server_error"));
    }

    #[test]
    fn an_unavailable_store_is_a_passing_error() {
        let cause = || StoreError::object("get", "blob/a", std::io::Error::other("gone"));
        let error = InferenceError::from(cause());
        assert!(error.is_passing());
        assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
        assert!(InferenceError::from(StoreError::Database(sqlx::Error::PoolTimedOut)).is_passing());
        assert!(InferenceError::internal(std::io::Error::other("a stream broke")).is_passing());
        assert!(!InferenceError::internal("a panic").is_passing());
        assert!(!InferenceError::from(StoreError::NotFound("model")).is_passing());
    }
}
