//! The error object of a response: its body, and the statuses, types and codes of the errors that requests of models
//! share with all others.
//!
//! Source of the shape: `ErrorResponse` of OpenAI's API reference.

use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

/// The error type of a request that is at fault.
const REQUEST: &str = "invalid_request_error";
/// The error type of a valid request.
const SERVER: &str = "server_error";

/// The body of every error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorView,
}

/// The error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorView {
    /// The human-readable message.
    pub message: String,
    /// The error type: `invalid_request_error`, `server_error` if the request was valid, or `requests` or `tokens` for
    /// a rate limit.
    #[schema(example = "invalid_request_error")]
    pub r#type: &'static str,
    /// The parameter at fault, as a path into the request.
    pub param: Option<String>,
    /// The stable, machine-readable code.
    #[schema(example = "unknown_parameter")]
    pub code: Option<&'static str>,
}

/// The status, type and code of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorKind {
    /// The HTTP status.
    pub status: StatusCode,
    /// The error type.
    pub r#type: &'static str,
    /// The stable, machine-readable code.
    pub code: &'static str,
}

impl ErrorKind {
    /// A model that does not exist.
    pub const MODEL_NOT_FOUND: Self = Self::request(StatusCode::NOT_FOUND, "model_not_found");
    /// A project with too many requests of one model.
    pub const TOO_MANY_ANSWERS: Self =
        Self { status: StatusCode::TOO_MANY_REQUESTS, r#type: "requests", code: "rate_limit_exceeded" };
    /// A store without space.
    pub const INSUFFICIENT_STORAGE: Self = Self::server(StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage");
    /// An object store that failed.
    pub const OBJECT_STORE_FAILED: Self = Self::server(StatusCode::BAD_GATEWAY, "object_store_failed");
    /// A model that no replica serves now.
    pub const MODEL_UNAVAILABLE: Self = Self::server(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable");
    /// A temporary lack of capacity.
    pub const OVERLOADED: Self = Self::server(StatusCode::SERVICE_UNAVAILABLE, "overloaded");
    /// An internal error.
    pub const INTERNAL: Self = Self::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error");

    /// Creates the kind of a request that is at fault.
    #[must_use]
    pub const fn request(status: StatusCode, code: &'static str) -> Self {
        Self { status, r#type: REQUEST, code }
    }

    /// Creates the kind of an invalid parameter.
    #[must_use]
    pub const fn invalid(code: &'static str) -> Self {
        Self::request(StatusCode::BAD_REQUEST, code)
    }

    /// Returns the kind of a store's failure; `is_full`: the store has no space.
    #[must_use]
    pub const fn storage(is_full: bool) -> Self {
        if is_full { Self::INSUFFICIENT_STORAGE } else { Self::OBJECT_STORE_FAILED }
    }

    const fn server(status: StatusCode, code: &'static str) -> Self {
        Self { status, r#type: SERVER, code }
    }

    /// Returns the body of an error of this kind.
    #[must_use]
    pub fn body(self, message: String, param: Option<String>) -> ErrorBody {
        ErrorBody { error: ErrorView { message, r#type: self.r#type, param, code: Some(self.code) } }
    }
}
