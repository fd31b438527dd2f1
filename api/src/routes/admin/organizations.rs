//! The installation's organizations: list and create. Requires the scope `installation`.

use attune_domain::{
    access::{Role, Scope},
    id::Organization as OrganizationKind,
};
use attune_store::{
    db,
    tenancy::{
        api_key::{self, NewKey},
        member::{self, Identity},
        tenant::{self, ORGANIZATION_NAME_KEY},
    },
};
use axum::{Json, extract::State};

use super::users;
use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::truncated,
    },
    policy::Policy,
    wire::organization::{NewApiKeyView, NewOrganization, NewOrganizationView, NewOwner, NewUser, OrganizationView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::installation("list_organizations"), Policy::installation("create_organization").holds_secret()];

/// The maximum length of an organization's name, in characters.
const NAME_CHARACTERS: usize = 100;

/// The name of an organization's first project.
const FIRST_PROJECT: &str = "default";

/// List organizations, newest first.
#[utoipa::path(get, path = "/v1/organizations", tag = "Installation", operation_id = "list_organizations",
    params(
        ("after" = Option<String>, Query, pattern = "^org-[0-9a-f]{32}$",
            description = "Return organizations after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<OrganizationView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    mut query: Params,
) -> Result<Json<List<OrganizationView>>, ApiError> {
    let (after, limit) = (query.after::<OrganizationKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.organization(administrator.organization_id).await?;
    db::as_installation(&mut db).await?;
    let organizations = tenant::organizations(&mut db, after, limit + 1).await?;
    let views = organizations.into_iter().map(OrganizationView::from).collect();
    Ok(Json(List::cut(views, limit, |organization: &OrganizationView| organization.id.clone())))
}

/// Create an organization.
///
/// The organization gets a project, an API key that administers it, whose secret is returned only here, and an owner,
/// if one is given. It shares nothing with other organizations except the installation's base models.
#[utoipa::path(post, path = "/v1/organizations", tag = "Installation", operation_id = "create_organization",
    request_body = NewOrganization,
    responses((status = 200, body = NewOrganizationView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    administrator: Administrator,
    Body(new): Body<NewOrganization>,
) -> Result<Json<NewOrganizationView>, ApiError> {
    let name = checked(&new.name)?;
    let owner = new.owner.map(|owner| owner_of(&app, owner)).transpose()?;
    let mut tx = app.organization(administrator.organization_id).await?;
    db::as_installation(&mut tx).await?;
    let made = tenant::insert_organization(&mut tx, name).await.map_err(|error| {
        if error.on_constraint(ORGANIZATION_NAME_KEY) {
            return ApiError::NameTaken(format!("There is an organization '{name}' already; choose another name."));
        }
        error.into()
    })?;
    let project = tenant::insert(&mut tx, made.organization_id, FIRST_PROJECT).await?;
    let scopes = [Scope::All, Scope::Admin];
    let new = NewKey { project_id: project.project_id, name: "first", scopes: &scopes, expires_in_seconds: None };
    let (key, value) = api_key::insert(&mut tx, &new).await?;
    if let Some(NewUser { issuer, subject, email, name, .. }) = &owner {
        let who = Identity { issuer, subject, email: email.as_deref(), name: name.as_deref() };
        member::admit(&mut tx, made.organization_id, &who, Role::Owner).await?;
    }
    tx.commit().await?;
    app.authenticator.forget();
    let api_key = NewApiKeyView { key: key.into(), value };
    Ok(Json(NewOrganizationView { organization: made.into(), project: project.into(), api_key }))
}

fn checked(name: &str) -> Result<&str, ApiError> {
    let trimmed = name.trim();
    if (1..=NAME_CHARACTERS).contains(&trimmed.chars().count()) && !trimmed.contains(char::is_control) {
        return Ok(trimmed);
    }
    let shown = truncated(name);
    let message =
        format!("Invalid 'name': '{shown}'; it must have 1 to {NAME_CHARACTERS} characters and no control character.");
    Err(ApiError::invalid("name", message))
}

fn owner_of(app: &App, NewOwner { issuer, subject, email, name }: NewOwner) -> Result<NewUser, ApiError> {
    let owner = NewUser { issuer, subject, role: Role::Owner.name().to_owned(), email, name };
    users::check(app, &owner)?;
    Ok(owner)
}
