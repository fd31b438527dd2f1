//! The organization's projects: list, create, retrieve, rename, archive.

use attune_domain::id::Project as ProjectKind;
use attune_store::{
    error::StoreError,
    tenancy::tenant::{self, PROJECT_NAME_CHECK, PROJECT_NAME_KEY},
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
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::{parse_id, truncated},
    },
    policy::Policy,
    wire::organization::{NamedProject, ProjectView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("list_projects"),
    Policy::organization("create_project"),
    Policy::organization("retrieve_project").retrieves(Thing::Project),
    Policy::organization("modify_project").names(Thing::Project),
    Policy::organization("archive_project").names(Thing::Project),
];

/// List the organization's projects, newest first.
#[utoipa::path(get, path = "/v1/organization/projects", tag = "Organization", operation_id = "list_projects",
    params(
        ("after" = Option<String>, Query, pattern = "^proj_[0-9a-f]{32}$",
            description = "Return projects after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
        ("include_archived" = Option<bool>, Query, description = "If `true`, includes archived projects."),
    ),
    responses((status = 200, body = List<ProjectView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    mut query: Params,
) -> Result<Json<List<ProjectView>>, ApiError> {
    let (after, limit) = (query.after::<ProjectKind>()?, query.limit(20, 100)?);
    let archived = query.truth("include_archived")?;
    query.done()?;
    let owner = administrator.organization_id;
    let mut db = app.organization(owner).await?;
    let projects = tenant::list(&mut db, owner, archived, after, limit + 1).await?;
    let views = projects.into_iter().map(ProjectView::from).collect();
    Ok(Json(List::cut(views, limit, |project: &ProjectView| project.id.clone())))
}

/// Create a project.
#[utoipa::path(post, path = "/v1/organization/projects", tag = "Organization", operation_id = "create_project",
    request_body = NamedProject,
    responses((status = 200, body = ProjectView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    administrator: Administrator,
    Body(new): Body<NamedProject>,
) -> Result<Json<ProjectView>, ApiError> {
    let owner = administrator.organization_id;
    let mut tx = app.organization(owner).await?;
    let project = tenant::insert(&mut tx, owner, plain(&new.name)?).await.map_err(|e| refused(e, &new.name))?;
    tx.commit().await?;
    app.authenticator.forget(); // the organization's admins have access from now on
    Ok(Json(project.into()))
}

/// Retrieve a project.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}", tag = "Organization",
    operation_id = "retrieve_project", params(("project_id" = String, Path)),
    responses((status = 200, body = ProjectView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<ProjectView>, ApiError> {
    let owner = administrator.organization_id;
    let mut db = app.organization(owner).await?;
    let project = tenant::get(&mut db, owner, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(project.into()))
}

/// Rename a project.
///
/// Models that were fine-tuned under the old name keep their names.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}", tag = "Organization",
    operation_id = "modify_project", params(("project_id" = String, Path)), request_body = NamedProject,
    responses((status = 200, body = ProjectView), (status = "4XX", body = ErrorBody)))]
pub async fn modify(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<NamedProject>,
) -> Result<Json<ProjectView>, ApiError> {
    let owner = administrator.organization_id;
    let mut tx = app.organization(owner).await?;
    let project =
        tenant::rename(&mut tx, owner, parse_id(&id)?, plain(&new.name)?).await.map_err(|error| match error {
            StoreError::NotFound(_) => ApiError::on_read(id)(error),
            other => refused(other, &new.name),
        })?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(project.into()))
}

/// Archive a project.
///
/// Its API keys are refused, and its users lose access. Its data is kept. An archived project cannot be restored.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}/archive", tag = "Organization",
    operation_id = "archive_project", params(("project_id" = String, Path)),
    responses((status = 200, body = ProjectView), (status = "4XX", body = ErrorBody)))]
pub async fn archive(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<ProjectView>, ApiError> {
    let owner = administrator.organization_id;
    let mut tx = app.organization(owner).await?;
    let project = tenant::archive(&mut tx, owner, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(project.into()))
}

/// Refuses NUL, which cannot be sent to the database; the database checks the rest.
fn plain(name: &str) -> Result<&str, ApiError> {
    if name.contains('\0') { Err(not_plain(name)) } else { Ok(name) }
}

fn not_plain(name: &str) -> ApiError {
    let shown = truncated(name);
    let allowed = "it must be a lower-case letter or a digit, then at most 30 of a-z, 0-9 and '-'";
    ApiError::invalid("name", format!("Invalid 'name': '{shown}'; {allowed}."))
}

fn refused(error: StoreError, name: &str) -> ApiError {
    if error.on_constraint(PROJECT_NAME_KEY) {
        return ApiError::NameTaken(format!("There is a project '{name}' already; choose another name."));
    }
    if error.on_constraint(PROJECT_NAME_CHECK) {
        return not_plain(name);
    }
    error.into()
}
