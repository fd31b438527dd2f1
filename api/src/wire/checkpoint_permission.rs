//! Permissions of checkpoints, in OpenAI's shape.

use attune_store::jobs::checkpoint_permission::Permission;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whom to let in.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPermissions {
    /// Projects of the same organization, 1 to 100.
    #[schema(min_items = 1, max_items = 100)]
    pub project_ids: Vec<String>,
}

/// One project that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PermissionView {
    /// Its id.
    #[schema(example = "cp_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// Always `checkpoint.permission`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created_at: i64,
    /// Who was let in.
    pub project_id: String,
}

impl From<Permission> for PermissionView {
    fn from(permission: Permission) -> Self {
        Self {
            id: permission.checkpoint_permission_id.to_string(),
            object: "checkpoint.permission",
            created_at: permission.created_at.timestamp(),
            project_id: permission.granted_project_id.to_string(),
        }
    }
}

/// A permission that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PermissionDeleted {
    /// Which.
    pub id: String,
    /// Always `checkpoint.permission`.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}
