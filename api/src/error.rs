//! The errors of the API: OpenAI's error object with a stable code, defined in one place. The errors of requests of
//! models, and their kinds, are those of `attune_inference`.
//!
//! The cause of `ApiError::Internal` is only logged; its caller gets the request ID to quote.

pub use attune_inference::error_body::ErrorBody;

use attune_domain::{bad_field::BadField, dataset::Defects};
use attune_inference::{
    error::{INTERNAL_MESSAGE, InferenceError, log_cause, model_message, storage_message},
    error_body::ErrorKind,
};
use attune_store::{error::StoreError, files::staging::StagingError};
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use strum::IntoStaticStr;

/// The quantity that a rate limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum LimitKind {
    /// Requests of any kind.
    Requests,
    /// Prompt and completion tokens.
    Tokens,
}

impl LimitKind {
    /// Returns OpenAI's name of the quantity.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
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
    /// A missing or invalid API key or token.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// An authenticated caller without the required permission.
    #[error("{0}")]
    Forbidden(String),
    /// A project or organization in the headers that does not exist or that the caller has no access to; or a caller
    /// that belongs to none.
    #[error("This API key or user has no access to the requested project or organization.")]
    Mismatched,
    /// An object that does not exist, or that belongs to another project.
    #[error("No such {noun}: '{name}'.")]
    NotFound {
        /// The object's kind, such as `file`.
        noun: &'static str,
        /// The name or ID in the request.
        name: String,
    },
    /// A model that does not exist, or that belongs to another project.
    #[error("{}", model_message(.0))]
    ModelNotFound(String),
    /// A path that no route has.
    #[error("Unknown request URL: {method} {path}.")]
    NoSuchRoute {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// A method that the path does not support.
    #[error("{method} is not allowed on {path}.")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// A body whose content type the route does not accept.
    #[error("The body must be {wanted}; set the Content-Type header accordingly.")]
    UnsupportedMediaType {
        /// The accepted content type, such as `application/json`.
        wanted: &'static str,
    },
    /// A body that exceeds its size limit.
    #[error("The {what} is larger than {limit} bytes, the maximum.")]
    TooLarge {
        /// The oversized content, such as `request body`.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A dataset with invalid rows.
    #[error("{}", file_message(.0))]
    BadRows(#[from] Defects),
    /// A name that is already in use.
    #[error("{0}")]
    NameTaken(String),
    /// A request that conflicts with the current state.
    #[error("{0}")]
    Conflict(String),
    /// A report from a trainer or replica that has lost its lease.
    #[error("The lease is stale: this run or replica has ended, or another one holds its work.")]
    Stale,
    /// A project that would exceed its storage quota.
    #[error(
        "The project's storage quota is {limit} {what}. It stores {used}, {}. Delete files, models or uploads that are \
         no longer needed, or ask the installation's administrator for a higher quota.",
        addition(*added)
    )]
    StorageQuotaExceeded {
        /// The unit: `bytes` or `objects`.
        what: &'static str,
        /// The quota.
        limit: u64,
        /// The amount that the project stores without the request's content.
        used: u64,
        /// The amount of the request's content; 0 if it has none, as that for a job.
        added: u64,
    },
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
    /// A temporary lack of capacity.
    #[error("{message}")]
    Busy {
        /// The message, with the limit.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// An object that does not match the caller's `If-Match`.
    #[error("If-Match: {}. Fetch the current version and retry.", since(current.as_deref()))]
    PreconditionFailed {
        /// The current `ETag`; `None` if the object does not exist.
        current: Option<String>,
    },
    /// A range outside the content.
    #[error("Range: the requested range is outside the content, which has {length} bytes.")]
    RangeNotSatisfiable {
        /// The length of the whole content, in bytes.
        length: u64,
    },
    /// An `Idempotency-Key` that was used for another request. Contains the difference.
    #[error("This Idempotency-Key was used for another request: {0}. A new request needs a new key.")]
    IdempotencyKeyReused(String),
    /// An `Idempotency-Key` whose first request is still in progress.
    #[error("The first request with this Idempotency-Key is still in progress. Retry in {retry_after_seconds} s.")]
    IdempotencyKeyHeld {
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// An `Idempotency-Key` whose first request was completed, but whose answer was not stored.
    #[error(
        "The first request with this Idempotency-Key was completed, but the server stopped before it stored the \
         response. List the objects to find the result."
    )]
    IdempotencyAnswerLost,
    /// An `Idempotency-Key` whose first answer contains a secret, sent with another bearer token.
    #[error(
        "The first request with this Idempotency-Key was completed. Its response contains a secret and can only \
         be read with the API key or token of that request. List the objects to find the result."
    )]
    IdempotencyAnswerSealed,
    /// An API key that has reached its rate limit.
    #[error("{message}")]
    RateLimited {
        /// The limit that was reached.
        kind: LimitKind,
        /// The message.
        message: String,
        /// The `Retry-After`, in seconds.
        retry_after_seconds: u64,
    },
    /// A project with its maximum number of waiting or running answers on the model.
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

fn since(current: Option<&str>) -> String {
    current.map_or_else(
        || "the object does not exist".to_owned(),
        |tag| format!("it has changed since; its ETag is now {tag}"),
    )
}

fn addition(added: u64) -> String {
    match added {
        0 => "which exceeds it".into(),
        added => format!("and this request adds {added}"),
    }
}

fn file_message(defects: &Defects) -> String {
    let rows = if defects.total == 1 { "1 defect".to_owned() } else { format!("{} defects", defects.total) };
    format!("Invalid file format: {rows}. Nothing was stored.\n{defects}")
}

impl ApiError {
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

    /// Returns a conversion for `map_err` on a read by name: a missing row is a "not found" error, any other error is
    /// converted as usual.
    pub fn on_read(name: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        let name = name.into();
        move |error| match error {
            StoreError::NotFound("model") => Self::ModelNotFound(name),
            StoreError::NotFound(noun) => Self::NotFound { noun, name },
            other => other.into(),
        }
    }

    /// Returns the status, type and code; the only table of them, apart from those that [`ErrorKind`] names.
    fn kind(&self) -> ErrorKind {
        let request = ErrorKind::request;
        match self {
            Self::Invalid { code, .. } => ErrorKind::invalid(code),
            Self::BadRows(_) => ErrorKind::invalid("invalid_file_format"),
            Self::Unauthenticated(_) => request(StatusCode::UNAUTHORIZED, "invalid_api_key"),
            Self::Mismatched => request(StatusCode::UNAUTHORIZED, "mismatched_project"),
            Self::Forbidden(_) => request(StatusCode::FORBIDDEN, "insufficient_permissions"),
            Self::StorageQuotaExceeded { .. } => request(StatusCode::FORBIDDEN, "storage_quota_exceeded"),
            Self::NotFound { .. } => request(StatusCode::NOT_FOUND, "not_found"),
            Self::ModelNotFound(_) => ErrorKind::MODEL_NOT_FOUND,
            Self::NoSuchRoute { .. } => request(StatusCode::NOT_FOUND, "unknown_url"),
            Self::MethodNotAllowed { .. } => request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::UnsupportedMediaType { .. } => request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::TooLarge { .. } => request(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::NameTaken(_) => request(StatusCode::CONFLICT, "name_taken"),
            Self::Conflict(_) => request(StatusCode::CONFLICT, "conflict"),
            Self::PreconditionFailed { .. } => request(StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            Self::RangeNotSatisfiable { .. } => request(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable"),
            Self::IdempotencyKeyReused(_) => request(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::IdempotencyKeyHeld { .. } => request(StatusCode::CONFLICT, "idempotency_key_in_use"),
            Self::IdempotencyAnswerLost => request(StatusCode::CONFLICT, "idempotency_answer_lost"),
            Self::IdempotencyAnswerSealed => request(StatusCode::CONFLICT, "idempotency_answer_sealed"),
            Self::RateLimited { kind, .. } => ErrorKind { r#type: kind.name(), ..ErrorKind::TOO_MANY_ANSWERS },
            Self::TooManyAnswers { .. } => ErrorKind::TOO_MANY_ANSWERS,
            Self::Stale => request(StatusCode::CONFLICT, "stale_lease"),
            Self::StorageRefused { cause, .. } => ErrorKind::storage(cause.is_full()),
            Self::ReplicaUnavailable { .. } => ErrorKind::MODEL_UNAVAILABLE,
            Self::Busy { .. } => ErrorKind::OVERLOADED,
            Self::Internal(_) => ErrorKind::INTERNAL,
        }
    }

    /// Returns the HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        self.kind().status
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::BadRows(_) => Some("file".into()),
            Self::ModelNotFound(_) => Some("model".into()),
            Self::NameTaken(_) => Some("name".into()),
            _ => None,
        }
    }

    /// Returns the error as callers receive it, in a body or in a stream.
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

/// The `Retry-After` for a project at its limit of unfinished jobs or batches, in seconds.
const UNFINISHED_RETRY_SECONDS: u64 = 60;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stale => Self::Stale,
            StoreError::Gap { .. } | StoreError::Illegal(_) => {
                Self::Conflict(format!("The report was refused: {error}."))
            }
            StoreError::TooManyUnfinished { noun, most } => Self::RateLimited {
                kind: LimitKind::Requests,
                message: format!(
                    "This project has {most} unfinished {noun}, the most it may have. Retry when one has ended."
                ),
                retry_after_seconds: UNFINISHED_RETRY_SECONDS,
            },
            StoreError::NotGranted(_) => Self::invalid("files", format!("{error}.")),
            StoreError::Batch(_) => Self::Conflict(format!("This is not possible in the current state: {error}.")),
            other => InferenceError::from(other).into(),
        }
    }
}

impl From<InferenceError> for ApiError {
    fn from(error: InferenceError) -> Self {
        match error {
            InferenceError::Invalid { param, code, message } => Self::Invalid { param, code, message },
            InferenceError::ModelNotFound(name) => Self::ModelNotFound(name),
            InferenceError::StorageRefused { what, cause } => Self::StorageRefused { what, cause },
            InferenceError::ReplicaUnavailable { message, retry_after_seconds }
            | InferenceError::NotReady { message, retry_after_seconds } => {
                Self::ReplicaUnavailable { message, retry_after_seconds }
            }
            InferenceError::Busy { message, retry_after_seconds } => Self::Busy { message, retry_after_seconds },
            InferenceError::TooManyAnswers { message, retry_after_seconds } => {
                Self::TooManyAnswers { message, retry_after_seconds }
            }
            InferenceError::Internal(cause) => Self::Internal(cause),
        }
    }
}

impl From<StagingError> for ApiError {
    fn from(error: StagingError) -> Self {
        match error {
            StagingError::TooLarge { what, limit } => Self::TooLarge { what, limit },
            StagingError::Refused { what, cause } => Self::StorageRefused { what, cause },
            StagingError::Store(error) => error.into(),
            StagingError::Task(panic) => Self::internal(panic),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<BadField> for ApiError {
    fn from(field: BadField) -> Self {
        Self::invalid(field.param, field.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.status(), Json(self.body())).into_response();
        if let Self::ReplicaUnavailable { retry_after_seconds, .. }
        | Self::Busy { retry_after_seconds, .. }
        | Self::TooManyAnswers { retry_after_seconds, .. }
        | Self::IdempotencyKeyHeld { retry_after_seconds }
        | Self::RateLimited { retry_after_seconds, .. } = self
        {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
        }
        if let Self::PreconditionFailed { current: Some(current) } = &self
            && let Ok(tag) = HeaderValue::from_str(current)
        {
            response.headers_mut().insert(header::ETAG, tag);
        }
        if let Self::Unauthenticated(_) = self {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::dataset::RowChecker;
    use attune_store::error::Refusal;

    use super::*;

    #[test]
    fn bad_rows_are_reported_with_their_lines_and_their_number() {
        let mut checker = RowChecker::new();
        checker.push(b"{\"messages\": 1}\nnot json\n");
        let body = ApiError::from(checker.finish().unwrap_err()).body().error;
        assert_eq!((body.code, body.param.as_deref()), (Some("invalid_file_format"), Some("file")));
        assert!(body.message.starts_with("Invalid file format: 2 defects."), "{}", body.message);
        assert!(body.message.contains("\nline 1: ") && body.message.contains("\nline 2: "), "{}", body.message);
    }

    #[test]
    fn the_inside_of_our_own_failure_stays_inside() {
        let error = ApiError::internal("password=hunter2");
        assert_eq!(error.body().error.message, "The server had an error while it processed the request.");
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    fn refused(status: u16, code: &str) -> ApiError {
        let refusal = Some(Refusal { status, code: code.into() });
        let cause = StoreError::Object { action: "put", key: "blob/secret".into(), refusal, cause: "x".into() };
        ApiError::StorageRefused { what: "file", cause }
    }

    #[test]
    fn case_19_a_full_disk_is_reported_only_where_the_service_says_so() {
        let other = refused(501, "NotImplemented");
        assert_eq!(other.status(), StatusCode::BAD_GATEWAY);
        let told = other.body().error;
        assert_eq!(told.code, Some("object_store_failed"));
        assert_eq!(told.message, "The object store failed on the file: it answered NotImplemented (501).");
        for (status, code) in [(507, "no code"), (507, "XMinioStorageFull"), (403, "QuotaExceeded")] {
            let full = refused(status, code);
            assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
            let told = full.body().error.message;
            let said = format!("The object store has no space for the file: it answered {code} ({status}).");
            assert!(told.starts_with(&said), "{told}");
        }
    }

    #[test]
    fn a_missing_replica_says_when_to_ask_again() {
        let error = ApiError::ReplicaUnavailable { message: "no".into(), retry_after_seconds: 5 };
        assert_eq!(error.into_response().headers()[header::RETRY_AFTER], "5");
    }
}
