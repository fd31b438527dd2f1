//! The share of a project in the queue of jobs. Weights compare projects of all organizations, so they are set by the
//! installation's administrators.

use attune_domain::id::ProjectId;
use attune_store::{
    db,
    error::StoreError,
    tenancy::{
        project_queue::{self, PROJECT_KEY},
        tenant,
    },
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, path_id::parse_id},
    policy::Policy,
    wire::project_queue::{NewProjectQueue, ProjectQueueView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("retrieve_project_queue").retrieves(Thing::ProjectQueue),
    Policy::installation("set_project_queue").names(Thing::ProjectQueue),
];

/// Retrieve a project's share of the machines and its quotas.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}/queue", tag = "Organization",
    operation_id = "retrieve_project_queue", params(("project_id" = String, Path)),
    responses((status = 200, body = ProjectQueueView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<ProjectQueueView>, ApiError> {
    let owner = administrator.organization_id;
    let mut db = app.organization(owner).await?;
    let project = tenant::get(&mut db, owner, parse_id(&id)?).await.map_err(ApiError::on_read(id))?.project_id;
    let settings = project_queue::get(&mut db, project).await?;
    Ok(Json(ProjectQueueView::new(project, settings)))
}

/// Set a project's share of the machines and its quotas.
///
/// The project may belong to any organization of the installation. Running jobs are not stopped when `max_running_jobs`
/// or `max_node_hours` is lowered, nothing is deleted when `max_stored_bytes` is, and the priorities of existing jobs
/// are not changed by `max_priority`. A field that is omitted gets its default. `If-Match` is supported for projects of
/// the caller's own organization.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}/queue", tag = "Installation",
    operation_id = "set_project_queue", params(("project_id" = String, Path)), request_body = NewProjectQueue,
    responses((status = 200, body = ProjectQueueView), (status = "4XX", body = ErrorBody)))]
pub async fn set(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<NewProjectQueue>,
) -> Result<Json<ProjectQueueView>, ApiError> {
    let settings = new.checked()?;
    let project: ProjectId = parse_id(&id)?;
    let mut tx = app.organization(administrator.organization_id).await?;
    db::as_installation(&mut tx).await?;
    project_queue::set(&mut tx, project, settings).await.map_err(|error| {
        let unknown = error.on_constraint(PROJECT_KEY);
        ApiError::on_read(id)(if unknown { StoreError::NotFound("project") } else { error })
    })?;
    tx.commit().await?;
    Ok(Json(ProjectQueueView::new(project, settings)))
}
