//! Permissions of checkpoints, in OpenAI's format.

use attune_store::jobs::checkpoint_permission::Permission;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The request body for granting projects access to a checkpoint.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPermissions {
    /// The IDs of 1 to 100 projects of the same organization.
    #[schema(min_items = 1, max_items = 100)]
    pub project_ids: Vec<String>,
}

/// A project's permission to use a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PermissionView {
    /// The permission's ID.
    #[schema(example = "cp_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `checkpoint.permission`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The ID of the project that has access.
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

/// A deleted permission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PermissionDeleted {
    /// The permission's ID.
    pub id: String,
    /// The object type, always `checkpoint.permission`.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}
