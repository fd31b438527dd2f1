//! Permissions of other projects in the organization to use a checkpoint as a model.

use attune_domain::{
    access::{Role, Scope},
    id::{CheckpointPermission as Kind, CheckpointPermissionId, ProjectId},
};
use attune_store::jobs::{
    checkpoint,
    checkpoint_permission::{self, Page},
};
use axum::{
    Json,
    extract::{Path, State},
};
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::truncated,
    },
    policy::Policy,
    wire::checkpoint_permission::{NewPermissions, PermissionDeleted, PermissionView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    // Grants access to other projects.
    Policy::project("create_checkpoint_permissions", Scope::JobsWrite, Role::Admin),
    Policy::project("list_checkpoint_permissions", Scope::JobsRead, Role::Viewer),
    Policy::project("delete_checkpoint_permission", Scope::JobsWrite, Role::Admin),
];

/// The maximum number of projects in one request.
const MOST_PROJECTS: usize = 100;

/// Grant other projects of the organization access to a checkpoint.
///
/// They can use the checkpoint as a model until the permission is deleted or the checkpoint no longer exists. Granting
/// access to a project again changes nothing.
#[utoipa::path(post, path = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions", tag = "Fine-tuning",
    operation_id = "create_checkpoint_permissions",
    params(("checkpoint" = String, Path, description = "The checkpoint's `fine_tuned_model_checkpoint`.")),
    request_body = NewPermissions,
    responses((status = 200, body = List<PermissionView>), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    Body(new): Body<NewPermissions>,
) -> Result<Json<List<PermissionView>>, ApiError> {
    let projects = projects(&new.project_ids)?;
    let mut all = app.platform().await?;
    let stranger = checkpoint_permission::first_stranger(&mut all, holder.organization_id, &projects).await?;
    drop(all);
    let mut tx = app.tenant(holder.project_id).await?;
    check_own(&mut tx, holder.project_id, &name).await?;
    if let Some(stranger) = stranger {
        return Err(no_project(&stranger.to_string()));
    }
    let granted = checkpoint_permission::grant(&mut tx, holder.project_id, &name, &projects).await?;
    tx.commit().await?;
    let views = granted.into_iter().map(PermissionView::from).collect();
    Ok(Json(List::whole(views, |permission: &PermissionView| permission.id.clone())))
}

/// List the permissions of a checkpoint, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions", tag = "Fine-tuning",
    operation_id = "list_checkpoint_permissions",
    params(
        ("checkpoint" = String, Path, description = "The checkpoint's `fine_tuned_model_checkpoint`."),
        ("project_id" = Option<String>, Query, description = "Return only permissions of this project."),
        ("after" = Option<String>, Query, pattern = "^cp_[0-9a-f]{32}$",
            description = "Return permissions after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 10."),
        ("order" = Option<String>, Query, pattern = "^(ascending|descending)$",
            description = "Sort order by creation time: `ascending` or `descending` (the default)."),
    ),
    responses((status = 200, body = List<PermissionView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    mut query: Params,
) -> Result<Json<List<PermissionView>>, ApiError> {
    let granted_to = query.take("project_id")?.map(|id| id.parse().map_err(|_| no_project(&id))).transpose()?;
    let (after, limit) = (query.after::<Kind>()?, query.limit(10, 100)?);
    let ascending = ascending(&mut query)?;
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    check_own(&mut db, holder.project_id, &name).await?;
    let page = Page { granted_to, after, limit: limit + 1, ascending };
    let found = checkpoint_permission::list(&mut db, holder.project_id, &name, &page).await?;
    let views = found.into_iter().map(PermissionView::from).collect();
    Ok(Json(List::cut(views, limit, |permission: &PermissionView| permission.id.clone())))
}

/// Delete a permission of a checkpoint.
#[utoipa::path(delete, path = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions/{permission_id}",
    tag = "Fine-tuning", operation_id = "delete_checkpoint_permission",
    params(
        ("checkpoint" = String, Path, description = "The checkpoint's `fine_tuned_model_checkpoint`."),
        ("permission_id" = String, Path),
    ),
    responses((status = 200, body = PermissionDeleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<PermissionDeleted>, ApiError> {
    let missing = || ApiError::NotFound { noun: "checkpoint permission", name: truncated(&id) };
    let permission: CheckpointPermissionId = id.parse().map_err(|_| missing())?;
    let mut tx = app.tenant(holder.project_id).await?;
    let revoked = checkpoint_permission::revoke(&mut tx, holder.project_id, &name, permission).await;
    revoked.map_err(ApiError::on_read(&id))?;
    tx.commit().await?;
    Ok(Json(PermissionDeleted { id, object: "checkpoint.permission", deleted: true }))
}

fn ascending(query: &mut Params) -> Result<bool, ApiError> {
    match query.take("order")?.as_deref() {
        None | Some("descending") => Ok(false),
        Some("ascending") => Ok(true),
        Some(other) => {
            let message = format!("Invalid 'order': '{other}'; give ascending or descending.");
            Err(ApiError::invalid("order", message))
        }
    }
}

fn projects(named: &[String]) -> Result<Vec<ProjectId>, ApiError> {
    if named.is_empty() || named.len() > MOST_PROJECTS {
        let message = format!("Invalid 'project_ids': {} projects; it must be 1 to {MOST_PROJECTS}.", named.len());
        return Err(ApiError::invalid("project_ids", message));
    }
    named.iter().map(|id| id.parse().map_err(|_| no_project(id))).collect()
}

fn no_project(id: &str) -> ApiError {
    let shown = truncated(id);
    ApiError::invalid("project_ids", format!("Invalid 'project_ids': the organization has no project '{shown}'."))
}

/// Checks that the checkpoint belongs to the caller's project.
async fn check_own(db: &mut PgConnection, project: ProjectId, name: &str) -> Result<(), ApiError> {
    match checkpoint::by_model_name(db, project, name).await? {
        Some(_) => Ok(()),
        None => Err(ApiError::NotFound { noun: "checkpoint", name: name.chars().take(200).collect() }),
    }
}
