//! What a caller is told when something cannot be done: OpenAI's error shape, with a stable code, from one place.
//!
//! The inside of [`ApiError::Internal`] goes to the log; its caller gets the request's id to quote.
//! Source of the shape: `ErrorResponse` of OpenAI's API reference.

use attune_domain::{bad_field::BadField, dataset::Defects};
use attune_store::error::StoreError;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorView,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorView {
    /// A sentence for people.
    pub message: String,
    /// `invalid_request_error`, or `server_error` when the request was right.
    #[schema(example = "invalid_request_error")]
    pub r#type: &'static str,
    /// The field at fault, as a path into the request.
    pub param: Option<String>,
    /// Stable, for programs.
    #[schema(example = "unknown_parameter")]
    pub code: Option<&'static str>,
}

/// The quantity that a rate limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests of any kind.
    Requests,
    /// Tokens, of prompts and of answers.
    Tokens,
}

impl LimitKind {
    /// Returns OpenAI's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// When to ask again while the database is away.
const DATABASE_RETRY_SECONDS: u64 = 5;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field is wrong.
    #[error("{message}")]
    Invalid {
        /// The field's path.
        param: Option<String>,
        /// Stable, for programs.
        code: &'static str,
        /// A sentence.
        message: String,
    },
    /// No key, or one that opens nothing.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Who asks is known, but may not.
    #[error("{0}")]
    Forbidden(String),
    /// The headers name a project or an organization that is not the caller's, or that nobody has; or the caller has
    /// none.
    #[error("The OpenAI-Project or OpenAI-Organization that is asked for is none of this key's or user's.")]
    Mismatched,
    /// There is no such thing, or it is another project's.
    #[error("No such {noun}: '{name}'.")]
    NotFound {
        /// `file`.
        noun: &'static str,
        /// As the caller named it.
        name: String,
    },
    /// There is no such model, or it is another project's.
    #[error("The model '{0}' does not exist, or this key has no access to it.")]
    ModelNotFound(String),
    /// No route has this path.
    #[error("Unknown request URL: {method} {path}.")]
    NoSuchRoute {
        /// As it came.
        method: String,
        /// As it came.
        path: String,
    },
    /// The path is known, the method is not.
    #[error("{method} is not allowed on {path}.")]
    MethodNotAllowed {
        /// As it came.
        method: String,
        /// As it came.
        path: String,
    },
    /// The body is not of the kind that the route takes.
    #[error("The body must be {wanted}; set the Content-Type header accordingly.")]
    UnsupportedMediaType {
        /// `application/json`.
        wanted: &'static str,
    },
    /// The body is longer than is allowed.
    #[error("The {what} is larger than {limit} bytes, the most that is taken.")]
    TooLarge {
        /// `request body`.
        what: &'static str,
        /// In bytes.
        limit: u64,
    },
    /// A dataset has bad rows.
    #[error("{}", file_message(.0))]
    BadRows(#[from] Defects),
    /// The name is taken.
    #[error("{0}")]
    NameTaken(String),
    /// It does not go with how things are now.
    #[error("{0}")]
    Conflict(String),
    /// A trainer's or replica's report comes too late.
    #[error("The lease is stale: this run or replica has ended, or another one holds its work.")]
    Stale,
    /// The project has stored all that it may.
    #[error(
        "The project may store {limit} {what}, and with this it would have {wanted}. Delete files, models or uploads that \
         are no longer needed, or ask whoever runs the installation for more."
    )]
    StorageQuotaExceeded {
        /// `bytes` or `objects`.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
        /// How many there would be.
        wanted: u64,
    },
    /// The object store did not take what was brought or give what was asked for, or the database has no room.
    #[error("{}", storage_message(what, cause))]
    StorageRefused {
        /// `file`.
        what: &'static str,
        /// What the store said.
        #[source]
        cause: StoreError,
    },
    /// No replica answers for the model in time, or the one that did cannot go on.
    #[error("{message}")]
    ReplicaUnavailable {
        /// A sentence with the reason.
        message: String,
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// Others are being served; later there is room.
    #[error("{message}")]
    Busy {
        /// A sentence with the limit.
        message: String,
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// The thing is no longer as the caller's `If-Match` has it.
    #[error("If-Match: {}. Read it again, and decide anew.", since(current.as_deref()))]
    PreconditionFailed {
        /// An `ETag` that would match; `None`: it is not there.
        current: Option<String>,
    },
    /// There is no such part.
    #[error("Range: the content has {length} bytes; no part of it is asked for.")]
    RangeNotSatisfiable {
        /// Of the whole.
        length: u64,
    },
    /// The `Idempotency-Key` stands for another request. Holds what differs.
    #[error("This Idempotency-Key was used for another request: {0}. A new request needs a new key.")]
    IdempotencyKeyReused(String),
    /// The first request with this `Idempotency-Key` goes on still.
    #[error(
        "The first request with this Idempotency-Key is still being answered; ask again in {retry_after_seconds} s."
    )]
    IdempotencyKeyHeld {
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// The first request with this `Idempotency-Key` was done, and nobody knows its answer.
    #[error(
        "The first request with this Idempotency-Key was done, but the server was stopped before it had kept the answer. \
         Look at the list for what it made."
    )]
    IdempotencyAnswerLost,
    /// The answer to the first request with this `Idempotency-Key` holds a secret, and another bearer asked.
    #[error(
        "The first request with this Idempotency-Key was done. Its answer holds a secret and was kept so that only the \
         bearer that asked can read it, and this is another. Look at the list for what it made."
    )]
    IdempotencyAnswerSealed,
    /// The key has had its share.
    #[error("{message}")]
    RateLimited {
        /// The limit that was reached.
        kind: LimitKind,
        /// A sentence.
        message: String,
        /// When there is more.
        retry_after_seconds: u64,
    },
    /// The project has as many answers waiting or running on the model as it may have.
    #[error("{message}")]
    TooManyAnswers {
        /// A sentence with the limit.
        message: String,
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// Our fault. The cause is for the log alone.
    #[error("The server had an error while it processed the request.")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Says what the service said, and speaks of a full disk only where the service does.
fn storage_message(what: &str, cause: &StoreError) -> String {
    match cause {
        StoreError::Object { refusal: Some(refusal), .. } if refusal.is_full() => {
            format!("The object store has no room for the {what}: it answered {refusal}. Nothing of it was kept.")
        }
        StoreError::Object { refusal: Some(refusal), .. } => {
            format!("The object store failed on the {what}: it answered {refusal}.")
        }
        StoreError::Object { refusal: None, .. } => {
            format!("The object store failed on the {what}: it did not answer.")
        }
        _ if cause.is_full() => {
            format!("The database has no room for the {what}: its disk is full. Nothing of it was kept.")
        }
        _ => format!("The {what} could not be stored. Nothing of it was kept."),
    }
}

fn since(current: Option<&str>) -> String {
    current.map_or_else(
        || "there is nothing of this name".to_owned(),
        |tag| format!("it has changed since; its ETag is now {tag}"),
    )
}

fn file_message(defects: &Defects) -> String {
    let rows = if defects.total == 1 { "1 defect".to_owned() } else { format!("{} defects", defects.total) };
    format!("Invalid file format: {rows}. Nothing was kept.\n{defects}")
}

impl ApiError {
    /// A field is wrong, and no code of its own fits.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), code: "invalid_value", message: message.into() }
    }

    /// A field asks for what cannot be done yet.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), code: "unsupported_parameter", message: message.into() }
    }

    /// Our fault.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// For `map_err` on a read by name: no such row is the caller's mistake, anything else is ours.
    pub fn on_read(name: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        let name = name.into();
        move |error| match error {
            StoreError::NotFound("model") => Self::ModelNotFound(name),
            StoreError::NotFound(noun) => Self::NotFound { noun, name },
            other => other.into(),
        }
    }

    /// Whether the same work may succeed later though nothing about it changes.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Stale | Self::StorageRefused { .. } | Self::ReplicaUnavailable { .. } | Self::Busy { .. } => true,
            Self::Internal(cause) => match cause.downcast_ref::<StoreError>() {
                Some(error) => error.is_passing(),
                None => cause.is::<std::io::Error>(),
            },
            _ => false,
        }
    }

    /// Status, type and code: the one table.
    fn parts(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Invalid { code, .. } => (StatusCode::BAD_REQUEST, REQUEST, Some(code)),
            Self::BadRows(_) => (StatusCode::BAD_REQUEST, REQUEST, Some("invalid_file_format")),
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, REQUEST, Some("invalid_api_key")),
            Self::Mismatched => (StatusCode::UNAUTHORIZED, REQUEST, Some("mismatched_project")),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, REQUEST, Some("insufficient_permissions")),
            Self::StorageQuotaExceeded { .. } => (StatusCode::FORBIDDEN, REQUEST, Some("storage_quota_exceeded")),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("not_found")),
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, Some("model_not_found")),
            Self::NoSuchRoute { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("unknown_url")),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, Some("method_not_allowed")),
            Self::UnsupportedMediaType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, Some("unsupported_media_type"))
            }
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, Some("request_too_large")),
            Self::NameTaken(_) => (StatusCode::CONFLICT, REQUEST, Some("name_taken")),
            Self::Conflict(_) => (StatusCode::CONFLICT, REQUEST, Some("conflict")),
            Self::PreconditionFailed { .. } => (StatusCode::PRECONDITION_FAILED, REQUEST, Some("precondition_failed")),
            Self::RangeNotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, REQUEST, Some("range_not_satisfiable"))
            }
            Self::IdempotencyKeyReused(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, REQUEST, Some("idempotency_key_reused"))
            }
            Self::IdempotencyKeyHeld { .. } => (StatusCode::CONFLICT, REQUEST, Some("idempotency_key_in_use")),
            Self::IdempotencyAnswerLost => (StatusCode::CONFLICT, REQUEST, Some("idempotency_answer_lost")),
            Self::IdempotencyAnswerSealed => (StatusCode::CONFLICT, REQUEST, Some("idempotency_answer_sealed")),
            Self::RateLimited { kind, .. } => (StatusCode::TOO_MANY_REQUESTS, kind.name(), Some("rate_limit_exceeded")),
            Self::TooManyAnswers { .. } => (StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded")),
            Self::Stale => (StatusCode::CONFLICT, REQUEST, Some("stale_lease")),
            Self::StorageRefused { cause, .. } if cause.is_full() => {
                (StatusCode::INSUFFICIENT_STORAGE, SERVER, Some("insufficient_storage"))
            }
            Self::StorageRefused { .. } => (StatusCode::BAD_GATEWAY, SERVER, Some("object_store_failed")),
            Self::ReplicaUnavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("model_unavailable")),
            Self::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded")),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
        }
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        self.parts().0
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

    /// The error as callers read it, in a body or in a stream.
    pub fn body(&self) -> ErrorBody {
        let (_, r#type, code) = self.parts();
        ErrorBody { error: ErrorView { message: self.to_string(), r#type, param: self.param(), code } }
    }

    /// Our own failures go to the log once, here; the caller's mistakes are theirs to read.
    pub fn log(&self) {
        let cause = match self {
            Self::Internal(cause) => Some(cause.as_ref() as &(dyn std::error::Error + 'static)),
            Self::StorageRefused { cause, .. } => Some(cause as &(dyn std::error::Error + 'static)),
            _ => None,
        };
        if let Some(cause) = cause {
            tracing::error!("the request failed: {}", chain(cause));
        }
    }
}

/// When a caller that has as much unfinished work as it may have is told to ask again.
const UNFINISHED_RETRY_SECONDS: u64 = 60;

/// An error and all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stale => Self::Stale,
            StoreError::Gap { .. } | StoreError::Illegal(_) => {
                Self::Conflict(format!("The report cannot be taken: {error}."))
            }
            StoreError::TooManyUnfinished { noun, most } => Self::RateLimited {
                kind: LimitKind::Requests,
                message: format!(
                    "This project has {most} unfinished {noun}, the most it may have. Retry when one has ended."
                ),
                retry_after_seconds: UNFINISHED_RETRY_SECONDS,
            },
            StoreError::NotGranted(_) => Self::invalid("files", format!("{error}.")),
            StoreError::Batch(_) => Self::Conflict(format!("That cannot be done now: {error}.")),
            other if other.is_bad_text() => Self::Invalid {
                param: None,
                code: "invalid_value",
                message: "A text in the request holds the character U+0000, which is not allowed.".into(),
            },
            other if other.is_full() => Self::StorageRefused { what: "change", cause: other },
            other @ StoreError::Object { .. } => Self::StorageRefused { what: "content", cause: other },
            other if other.is_passing() => {
                tracing::error!("the database is away: {}", chain(&other));
                Self::Busy {
                    message: "The database does not answer now. Ask again in a moment.".into(),
                    retry_after_seconds: DATABASE_RETRY_SECONDS,
                }
            }
            other => Self::internal(other),
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
        let (status, ..) = self.parts();
        let mut response = (status, Json(self.body())).into_response();
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
    fn bad_rows_are_told_with_their_lines_and_their_number() {
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
    fn case_19_a_full_disk_is_told_only_where_the_service_says_so() {
        let other = refused(501, "NotImplemented");
        assert_eq!(other.status(), StatusCode::BAD_GATEWAY);
        let told = other.body().error;
        assert_eq!(told.code, Some("object_store_failed"));
        assert_eq!(told.message, "The object store failed on the file: it answered NotImplemented (501).");
        for (status, code) in [(507, "no code"), (507, "XMinioStorageFull"), (403, "QuotaExceeded")] {
            let full = refused(status, code);
            assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
            let told = full.body().error.message;
            let said = format!("The object store has no room for the file: it answered {code} ({status}).");
            assert!(told.starts_with(&said), "{told}");
        }
    }

    #[test]
    fn a_missing_replica_says_when_to_ask_again() {
        let error = ApiError::ReplicaUnavailable { message: "no".into(), retry_after_seconds: 5 };
        assert_eq!(error.into_response().headers()[header::RETRY_AFTER], "5");
    }
}
