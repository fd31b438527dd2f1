//! Whether the api is up.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// How the api is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: &'static str,
}

/// See whether the api is up.
///
/// It listens only after the schema and the bucket are there, so an answer means that it can work.
#[utoipa::path(get, path = "/healthz", tag = "Platform", operation_id = "health", security(()),
    responses((status = 200, body = Health)))]
pub async fn get() -> Json<Health> {
    Json(Health { status: "ok" })
}
