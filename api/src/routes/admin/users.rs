//! The users of the organization: list, add, retrieve, modify, remove.

use attune_domain::{
    access::Role,
    id::{Person as PersonKind, PersonId},
};
use attune_store::{
    db::Tx,
    tenancy::member::{self, Identity, Member, Of},
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
        path_id::parse_id,
    },
    policy::Policy,
    wire::{
        file::Deleted,
        organization::{ChangedRole, NewUser, UserView, role},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("list_users"),
    Policy::organization("create_user"),
    Policy::organization("retrieve_user").retrieves(Thing::User),
    Policy::organization("modify_user").names(Thing::User),
    Policy::organization("delete_user").names(Thing::User),
];

const OBJECT: &str = "organization.user";

/// List the organization's users.
#[utoipa::path(get, path = "/v1/organization/users", tag = "Organization", operation_id = "list_users",
    params(
        ("after" = Option<String>, Query, pattern = "^user-[0-9a-f]{32}$", description = "Return users after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<UserView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    administrator: Administrator,
    mut query: Params,
) -> Result<Json<List<UserView>>, ApiError> {
    let (after, limit) = (query.after::<PersonKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.organization(administrator.organization_id).await?;
    let members = member::list(&mut db, Of::Organization(administrator.organization_id), after, limit + 1).await?;
    Ok(Json(page(members, limit, OBJECT)))
}

/// Returns a page of a list of users.
pub fn page(members: Vec<Member>, limit: i64, object: &'static str) -> List<UserView> {
    let views = members.into_iter().map(|member| UserView::new(member, object)).collect();
    List::cut(views, limit, |user: &UserView| user.id.clone())
}

/// Add a user to the organization.
///
/// The user signs in with tokens of their issuer. An owner or admin has that role in every project; other users have
/// access to the projects that they are added to.
#[utoipa::path(post, path = "/v1/organization/users", tag = "Organization", operation_id = "create_user",
    request_body = NewUser,
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    administrator: Administrator,
    Body(new): Body<NewUser>,
) -> Result<Json<UserView>, ApiError> {
    let role = role(&new.role)?;
    check(&app, &new)?;
    only_an_owner_makes_owners(administrator.role, &[role])?;
    let of = Of::Organization(administrator.organization_id);
    let (issuer, subject) = (new.issuer.as_str(), new.subject.as_str());
    let who = Identity { issuer, subject, email: new.email.as_deref(), name: new.name.as_deref() };
    let mut tx = app.organization(administrator.organization_id).await?;
    let admitted = member::admit(&mut tx, administrator.organization_id, &who, role).await;
    let id = admitted.map_err(|e| already(e, "organization_member_pkey"))?;
    let member = member::get(&mut tx, of, id).await?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Checks the fields of a new user.
///
/// # Errors
/// [`ApiError::Invalid`]: the issuer is not configured, or a text has an invalid length or a NUL character.
pub fn check(app: &App, new: &NewUser) -> Result<(), ApiError> {
    if !app.authenticator.issuers().knows(&new.issuer) {
        let shown: String = new.issuer.chars().take(200).collect();
        let allowed = app.authenticator.issuers().names();
        return Err(ApiError::invalid(
            "issuer",
            format!("Invalid 'issuer': '{shown}' is not configured; configured: {allowed}."),
        ));
    }
    let texts = [("subject", Some(&new.subject)), ("email", new.email.as_ref()), ("name", new.name.as_ref())];
    for (field, text) in texts {
        if text.is_some_and(|text| !(1..=255).contains(&text.chars().count()) || text.contains('\0')) {
            return Err(ApiError::invalid(field, format!("Invalid '{field}': it must have 1 to 255 characters.")));
        }
    }
    Ok(())
}

/// Converts the error for a user who is a member already.
pub fn already(error: attune_store::error::StoreError, constraint: &str) -> ApiError {
    if error.on_constraint(constraint) {
        return ApiError::Conflict("This user is a member already; change their role instead.".into());
    }
    error.into()
}

/// Retrieve a user.
#[utoipa::path(get, path = "/v1/organization/users/{user_id}", tag = "Organization", operation_id = "retrieve_user",
    params(("user_id" = String, Path)),
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<UserView>, ApiError> {
    let mut db = app.organization(administrator.organization_id).await?;
    let of = Of::Organization(administrator.organization_id);
    let member = member::get(&mut db, of, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Modify a user's role.
///
/// Only an owner can add or remove owners, and the last owner cannot be removed.
#[utoipa::path(post, path = "/v1/organization/users/{user_id}", tag = "Organization", operation_id = "modify_user",
    params(("user_id" = String, Path)), request_body = ChangedRole,
    responses((status = 200, body = UserView), (status = "4XX", body = ErrorBody)))]
pub async fn modify(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<ChangedRole>,
) -> Result<Json<UserView>, ApiError> {
    let (role, person) = (role(&new.role)?, parse_id(&id)?);
    let of = Of::Organization(administrator.organization_id);
    let mut tx = app.organization(administrator.organization_id).await?;
    let before = member::get(&mut tx, of, person).await.map_err(ApiError::on_read(&id))?;
    only_an_owner_makes_owners(administrator.role, &[before.role, role])?;
    if role < Role::Owner {
        not_the_last_owner(&mut tx, &administrator, person).await?;
    }
    member::change_role(&mut tx, of, person, role).await.map_err(ApiError::on_read(id))?;
    let member = member::get(&mut tx, of, person).await?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(UserView::new(member, OBJECT)))
}

/// Remove a user from the organization and from all its projects.
#[utoipa::path(delete, path = "/v1/organization/users/{user_id}", tag = "Organization", operation_id = "delete_user",
    params(("user_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let person = parse_id(&id)?;
    let of = Of::Organization(administrator.organization_id);
    let mut tx = app.organization(administrator.organization_id).await?;
    let member = member::get(&mut tx, of, person).await.map_err(ApiError::on_read(&id))?;
    only_an_owner_makes_owners(administrator.role, &[member.role])?;
    not_the_last_owner(&mut tx, &administrator, person).await?;
    member::dismiss(&mut tx, of, person).await.map_err(ApiError::on_read(&id))?;
    tx.commit().await?;
    app.authenticator.forget();
    Ok(Json(Deleted { id, object: "organization.user.deleted", deleted: true }))
}

/// Refuses an admin's request to add, change or remove an owner.
fn only_an_owner_makes_owners(mine: Role, touched: &[Role]) -> Result<(), ApiError> {
    if mine < Role::Owner && touched.contains(&Role::Owner) {
        return Err(ApiError::Forbidden("Only an owner can add, change or remove an owner.".into()));
    }
    Ok(())
}

async fn not_the_last_owner(tx: &mut Tx, administrator: &Administrator, person: PersonId) -> Result<(), ApiError> {
    let owners = member::lock_owners(tx, administrator.organization_id).await?;
    if owners == [person] {
        return Err(ApiError::Conflict("This is the organization's last owner. Add another owner first.".into()));
    }
    Ok(())
}
