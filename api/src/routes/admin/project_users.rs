//! The users of a project: list, add, retrieve, modify, remove. All of them are users of its organization.

use attune_domain::id::Person as PersonKind;
use attune_store::{
    tenancy::member::{self, Of},
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use super::{
    api_keys::open,
    users::{already, page},
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
    wire::{
        file::Deleted,
        organization::{ChangedRole, NewProjectUser, UserView, role},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("list_project_users").names(Thing::Project),
    Policy::organization("create_project_user").names(Thing::Project),
    Policy::organization("retrieve_project_user").retrieves(Thing::ProjectUser),
    Policy::organization("modify_project_user").names(Thing::ProjectUser),
    Policy::organization("delete_project_user").names(Thing::ProjectUser),
];

const OBJECT: &str = "organization.project.user";

/// List a project's users.
///
/// The organization's owners and admins have access as well, even if they are not in the list.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}/users", tag = "Organization",
    operation_id = "list_project_users",
    params(
        ("project_id" = String, Path),
        ("after" = Option<String>, Query, pattern = "^user-[0-9a-f]{32}$", description = "Return users after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<UserView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Json<List<UserView>>, ApiError> {
    let (after, limit) = (query.after::<PersonKind>()?, query.limit(20, 100)?);
    query.done()?;
    let (mut db, project) = open(&app, &administrator, id).await?;
    let members = member::list(&mut db, Of::Project(project), after, limit + 1).await?;
    Ok(Json(page(members, limit, OBJECT)))
}

/// Add a user of the organization to a project.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}/users", tag = "Organization",
    operation_id = "create_project_user", params(("project_id" = String, Path)), request_body = NewProjectUser,
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<NewProjectUser>,
) -> Result<Json<UserView>, ApiError> {
    let role = role(&new.role)?;
    let (mut tx, project) = open(&app, &administrator, id).await?;
    let missing = || {
        let shown = truncated(&new.user_id);
        ApiError::invalid("user_id", format!("Invalid 'user_id': there is no user '{shown}' in the organization."))
    };
    let person = new.user_id.parse().map_err(|_| missing())?;
    let admitted = member::admit_to_project(&mut tx, project, person, role).await;
    admitted.map_err(|error| match error {
        attune_store::error::StoreError::NotFound(_) => missing(),
        other => already(other, "project_member_pkey"),
    })?;
    let member = member::get(&mut tx, Of::Project(project), person).await?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Retrieve a user of a project.
#[utoipa::path(get, path = "/v1/organization/projects/{project_id}/users/{user_id}", tag = "Organization",
    operation_id = "retrieve_project_user", params(("project_id" = String, Path), ("user_id" = String, Path)),
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path((id, user)): Path<(String, String)>,
) -> Result<Json<UserView>, ApiError> {
    let (mut db, project) = open(&app, &administrator, id).await?;
    let member = member::get(&mut db, Of::Project(project), parse_id(&user)?).await.map_err(ApiError::on_read(user))?;
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Modify a user's role in a project.
#[utoipa::path(post, path = "/v1/organization/projects/{project_id}/users/{user_id}", tag = "Organization",
    operation_id = "modify_project_user", params(("project_id" = String, Path), ("user_id" = String, Path)),
    request_body = ChangedRole,
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn modify(
    State(app): State<App>,
    administrator: Administrator,
    Path((id, user)): Path<(String, String)>,
    Body(new): Body<ChangedRole>,
) -> Result<Json<UserView>, ApiError> {
    let (role, person) = (role(&new.role)?, parse_id(&user)?);
    let (mut tx, project) = open(&app, &administrator, id).await?;
    let of = Of::Project(project);
    member::change_role(&mut tx, of, person, role).await.map_err(ApiError::on_read(user))?;
    let member = member::get(&mut tx, of, person).await?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Remove a user from a project.
#[utoipa::path(delete, path = "/v1/organization/projects/{project_id}/users/{user_id}", tag = "Organization",
    operation_id = "delete_project_user", params(("project_id" = String, Path), ("user_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    administrator: Administrator,
    Path((id, user)): Path<(String, String)>,
) -> Result<Json<Deleted>, ApiError> {
    let (mut tx, project) = open(&app, &administrator, id).await?;
    let dismissed = member::dismiss(&mut tx, Of::Project(project), parse_id(&user)?).await;
    dismissed.map_err(ApiError::on_read(&user))?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(Deleted { id: user, object: "organization.project.user.deleted", deleted: true }))
}
