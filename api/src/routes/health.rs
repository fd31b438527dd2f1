//! The health check of the API.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::policy::Policy;

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[Policy::open("health")];

/// The health of the API.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: &'static str,
}

/// Check the health of the API.
///
/// The API listens only after the schema and the bucket exist, so a response means that it is ready.
#[utoipa::path(get, path = "/healthz", tag = "Platform", operation_id = "health", security(()),
    responses((status = 200, body = Health)))]
pub async fn get() -> Json<Health> {
    Json(Health { status: "ok" })
}
