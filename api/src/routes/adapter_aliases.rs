//! Aliases: `records@prod` is a model name that can be moved from version to version. A move takes effect with the next
//! request.

use std::collections::HashMap;

use attune_domain::{
    access::{Role, Scope},
    id::{AdapterAliasMove as MoveKind, AdapterVersionId, ProjectId},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_alias::{self, Outcome},
        adapter_canary, adapter_shadow, adapter_traffic,
    },
    error::StoreError,
    version::Thing,
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
    routes::adapters::find,
    wire::{
        adapter::{AliasMoveView, AliasView, NewAlias},
        file::Deleted,
        promotion::{canary::CanaryView, shadow::ShadowView},
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
    let project = holder.project_id;
    let mut tx = app.tenant(project).await?;
    let adapter = find(&mut tx, project, name).await?.adapter;
    adapter_alias::lock(&mut tx, project, &adapter).await?;
    let to = version(&mut tx, project, &adapter, ("version", &new.version)).await?;
    let expected = match &new.expected {
        Some(Some(named)) => Some(Some(version(&mut tx, project, &adapter, ("expected", named)).await?)),
        Some(None) => Some(None),
        None => None,
    };
    let expected = expected.map(|version| version.map(|version| version.adapter_version_id));
    match adapter_alias::set(&mut tx, project, &alias, &to, expected).await? {
        Outcome::Moved | Outcome::Same => {}
        Outcome::Differs(current) => return Err(differs(&adapter, &alias, current)),
        Outcome::Canary(canary) => return Err(canary_runs(&format!("{adapter}@{alias}"), canary)),
    }
    let view = view(&mut tx, project, &adapter, &alias).await?;
    tx.commit_at(FailPoint::AliasSet).await?;
    Ok(Json(view))
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
    let mut tx = app.tenant(holder.project_id).await?;
    let adapter = find(&mut tx, holder.project_id, name).await?.adapter;
    let id = adapter_alias::lock(&mut tx, holder.project_id, &adapter).await?;
    let whole = format!("{adapter}@{alias}");
    let removed = adapter_alias::remove(&mut tx, holder.project_id, id, &alias).await;
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

/// Returns the view of an alias.
pub(super) async fn view(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: &str,
) -> Result<AliasView, ApiError> {
    let found = views(db, project, adapter, Some(alias)).await?.pop();
    found.ok_or_else(|| ApiError::NotFound { noun: "alias", name: format!("{adapter}@{alias}") })
}

/// Returns the views of an adapter's aliases by name; only of the one with this name, if one is given.
async fn views(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: Option<&str>,
) -> Result<Vec<AliasView>, ApiError> {
    let aliases = adapter_alias::list(db, project, adapter, alias).await?;
    let canaries = adapter_canary::last(db, project, adapter, alias).await?;
    let ids: Vec<_> = canaries.iter().map(|canary| canary.adapter_canary_id).collect();
    let mut observed = adapter_traffic::of_canaries(db, &ids).await?;
    let canaries = canaries.into_iter().map(|canary| {
        let id = canary.adapter_canary_id;
        let mut of = |version| observed.remove(&(id, version)).unwrap_or_default();
        let (trial, stable) = (of(canary.adapter_version_id), of(canary.stable_version_id));
        (canary.alias.clone(), CanaryView::new(canary, trial, stable))
    });
    let mut canaries: HashMap<_, _> = canaries.collect();
    let shadows = adapter_shadow::last(db, project, adapter, alias).await?.into_iter();
    let mut shadows: HashMap<_, _> = shadows.map(|shadow| (shadow.alias.clone(), ShadowView::from(shadow))).collect();
    let views = aliases.into_iter().map(|alias| {
        let (canary, shadow) = (canaries.remove(&alias.alias), shadows.remove(&alias.alias));
        AliasView::new(adapter, alias, canary, shadow)
    });
    Ok(views.collect())
}

/// Returns a version of the adapter by its number or by any of its names, locked until the transaction ends.
pub(super) async fn version(
    tx: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    (param, given): (&'static str, &str),
) -> Result<AdapterVersion, ApiError> {
    let is_number = !given.is_empty() && given.bytes().all(|b| b.is_ascii_digit());
    let reference = if is_number { format!("{adapter}@{given}") } else { given.to_owned() };
    let shown = truncated(given);
    match adapter::lock(tx, project, &reference).await {
        Ok(version) if version.adapter == adapter => Ok(version),
        Ok(version) => {
            let other = &version.adapter;
            let message = format!("Invalid '{param}': '{shown}' is a version of '{other}', not of '{adapter}'.");
            Err(ApiError::invalid(param, message))
        }
        Err(StoreError::NotFound(_)) => {
            Err(ApiError::invalid(param, format!("Invalid '{param}': '{adapter}' has no version '{shown}'.")))
        }
        Err(error) => Err(error.into()),
    }
}

fn differs(adapter: &str, alias: &str, current: Option<AdapterVersionId>) -> ApiError {
    let now = current.map_or("does not exist".to_owned(), |id| format!("points to {id}"));
    ApiError::Conflict(format!("The alias '{adapter}@{alias}' {now}, contrary to 'expected'. It was not moved."))
}

/// Returns the refusal of what cannot be done to an alias while a canary runs.
pub(super) fn canary_runs(whole: &str, canary: AdapterVersionId) -> ApiError {
    let message = format!("A canary with {canary} runs on '{whole}'. Promote or abort it first. Nothing was changed.");
    ApiError::Conflict(message)
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
