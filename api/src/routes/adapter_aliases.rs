//! Aliases: `records@prod` is a model name that can be moved from version to version. A move takes effect with the next
//! request.

pub(crate) mod change;
pub(crate) mod views;

use attune_domain::{
    access::{Role, Scope},
    id::{AdapterAliasMove as MoveKind, AdapterVersionId},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    adapters::adapter_alias::{self, Outcome},
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use self::{
    change::AliasChange,
    views::{view, views},
};
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
    routes::adapters::find,
    wire::{
        adapter::{AliasMoveView, AliasView, NewAlias},
        file::Deleted,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("list_adapter_aliases", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("retrieve_adapter_alias", Scope::ModelsRead, Role::Viewer).retrieves(Thing::Alias),
    Policy::project("set_adapter_alias", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("delete_adapter_alias", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("list_adapter_alias_moves", Scope::ModelsRead, Role::Viewer).names(Thing::Alias),
];

/// List the aliases of an adapter, by name.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/aliases", tag = "Adapters", operation_id = "list_adapter_aliases",
    params(("adapter" = String, Path, description = "The adapter's name, or any name of one of its versions.")),
    responses((status = 200, body = List<AliasView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    query: Params,
) -> Result<Json<List<AliasView>>, ApiError> {
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let adapter = find(&mut db, holder.project_id, name).await?.adapter;
    let views = views(&mut db, holder.project_id, &adapter, None).await?;
    Ok(Json(List::whole(views, |alias: &AliasView| alias.id.clone())))
}

/// Retrieve an alias.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/aliases/{alias}", tag = "Adapters",
    operation_id = "retrieve_adapter_alias",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<AliasView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let adapter = find(&mut db, holder.project_id, name).await?.adapter;
    Ok(Json(view(&mut db, holder.project_id, &adapter, &alias).await?))
}

/// Create an alias, or move it to a version.
///
/// With `expected`, the alias moves only if it points to that version now; otherwise the response is 409 with the
/// current version. While a canary of the alias runs, the response is 409 too. Every move is recorded. A version that
/// an alias points to cannot be deleted.
#[utoipa::path(put, path = "/v1/adapters/{adapter}/aliases/{alias}", tag = "Adapters",
    operation_id = "set_adapter_alias",
    params(
        ("adapter" = String, Path, description = "The adapter's name."),
        ("alias" = String, Path,
            description = "The alias: a lower-case letter, then at most 31 of a-z, 0-9, `_` and `-`."),
    ),
    request_body = NewAlias,
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn set(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
    Body(new): Body<NewAlias>,
) -> Result<Json<AliasView>, ApiError> {
    check_name(&alias)?;
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    let to = change.version("version", &new.version).await?;
    let expected = match &new.expected {
        Some(Some(named)) => Some(Some(change.version("expected", named).await?)),
        Some(None) => Some(None),
        None => None,
    };
    let expected = expected.map(|version| version.map(|version| version.adapter_version_id));
    match adapter_alias::set(&mut change.tx, change.project, &change.alias, &to, expected).await? {
        Outcome::Moved | Outcome::Same => {}
        Outcome::Differs(current) => return Err(differs(&change.whole, current)),
        Outcome::Canary(canary) => return Err(change.canary_runs(canary)),
    }
    change.commit_at(&[FailPoint::AliasSet]).await
}

/// Delete an alias.
///
/// The versions of the adapter and the recorded moves are kept.
#[utoipa::path(delete, path = "/v1/adapters/{adapter}/aliases/{alias}", tag = "Adapters",
    operation_id = "delete_adapter_alias",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<Deleted>, ApiError> {
    let AliasChange { mut tx, project, adapter_id, alias, whole, .. } =
        AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    let removed = adapter_alias::remove(&mut tx, project, adapter_id, &alias).await;
    removed.map_err(ApiError::on_read(&whole))?;
    tx.commit().await?;
    Ok(Json(Deleted { id: whole, object: "adapter.alias", deleted: true }))
}

/// List the moves of an alias, newest first. A deleted alias keeps its moves.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/aliases/{alias}/moves", tag = "Adapters",
    operation_id = "list_adapter_alias_moves",
    params(
        ("adapter" = String, Path, description = "The adapter's name."),
        ("alias" = String, Path),
        ("after" = Option<String>, Query, pattern = "^aliasmove_[0-9a-f]{32}$",
            description = "Return moves after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<AliasMoveView>), (status = "4XX", body = ErrorBody)))]
pub async fn moves(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
    mut query: Params,
) -> Result<Json<List<AliasMoveView>>, ApiError> {
    let (after, limit) = (query.after::<MoveKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let adapter = find(&mut db, holder.project_id, name).await?.adapter;
    let of = (adapter.as_str(), alias.as_str());
    let moves = adapter_alias::history(&mut db, holder.project_id, of, after, limit + 1).await?;
    if moves.is_empty() && after.is_none() {
        return Err(ApiError::NotFound { noun: "alias", name: format!("{adapter}@{alias}") });
    }
    let views = moves.into_iter().map(AliasMoveView::from).collect();
    Ok(Json(List::cut(views, limit, |step: &AliasMoveView| step.id.clone())))
}

fn differs(whole: &str, current: Option<AdapterVersionId>) -> ApiError {
    let now = current.map_or("does not exist".to_owned(), |id| format!("points to {id}"));
    ApiError::Conflict(format!("The alias '{whole}' {now}, contrary to 'expected'. It was not moved."))
}

fn check_name(alias: &str) -> Result<(), ApiError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    let fits = alias.len() <= 32 && alias.starts_with(|c: char| c.is_ascii_lowercase()) && alias.bytes().all(plain);
    if fits {
        return Ok(());
    }
    let shown = truncated(alias);
    let allowed = "it must be a lower-case letter, then at most 31 of a-z, 0-9, '_' and '-'";
    let message = format!("Invalid 'alias': '{shown}'; {allowed}.");
    Err(ApiError::invalid("alias", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_cannot_be_taken_for_a_number_or_a_path() {
        for good in ["prod", "canary-2", "a", "blue_green"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "2", "2nd", "Prod", "a/b", "a@b", "-a", "é", &"a".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
