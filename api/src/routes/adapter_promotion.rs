//! The promotion of an alias: a canary answers a share of its requests until it is promoted or aborted; a shadow
//! answers copies of them; a rollback returns to the version before.

use attune_domain::access::{Role, Scope};
use attune_store::{
    adapters::{
        adapter_alias::{self, Rollback},
        adapter_canary::{self, Start},
        adapter_shadow,
    },
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::json_body::Body,
    policy::Policy,
    routes::adapter_aliases::change::AliasChange,
    wire::{
        adapter::AliasView,
        promotion::{canary::NewCanary, shadow::NewShadow},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("start_adapter_canary", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("promote_adapter_canary", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("abort_adapter_canary", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("roll_back_adapter_alias", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("start_adapter_shadow", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
    Policy::project("stop_adapter_shadow", Scope::ModelsWrite, Role::Member).names(Thing::Alias),
];

/// The reason of a canary that a user aborts.
const BY_REQUEST: &str = "It was aborted by request.";

/// Start the canary of an alias, or change its share and its rule.
///
/// The version answers `percent` of the alias's requests; the version that the alias names answers the others. Requests
/// with the same `prompt_cache_key`, `safety_identifier` or `user` (the first of them that is set) have the same
/// version, others are split by their ID. The platform aborts the canary by the rule in `abort`. While it runs, the
/// alias moves only by its promotion. If another version is the canary already, the response is 409.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/aliases/{alias}/canary", tag = "Adapters",
    operation_id = "start_adapter_canary",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    request_body = NewCanary,
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn start_canary(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
    Body(new): Body<NewCanary>,
) -> Result<Json<AliasView>, ApiError> {
    let share = new.share()?;
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    change.view().await?; // before the version: an unknown alias is a 404
    let to = change.version("version", &new.version).await?;
    let started = adapter_canary::start(&mut change.tx, change.project, &change.alias, &to, share).await;
    let started = started.map_err(ApiError::on_read(&change.whole))?;
    match started {
        Start::Running => change.commit().await,
        Start::Stable => {
            let message = format!("Invalid 'version': '{}' points to version {} already.", change.whole, to.version);
            Err(ApiError::invalid("version", message))
        }
        Start::Other(canary) => Err(change.canary_runs(canary)),
    }
}

/// Promote the canary of an alias.
///
/// The alias moves to the canary's version with the next request. The version before stays in the memory of the serving
/// process, as long as there is room for it, for a rollback.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/aliases/{alias}/promote", tag = "Adapters",
    operation_id = "promote_adapter_canary",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn promote(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<AliasView>, ApiError> {
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    change.view().await?;
    if !adapter_canary::promote(&mut change.tx, change.project, change.adapter_id, &change.alias).await? {
        return Err(no_canary(&change.whole));
    }
    change.commit().await
}

/// Abort the canary of an alias.
///
/// The version that the alias names answers all requests again.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/aliases/{alias}/abort", tag = "Adapters",
    operation_id = "abort_adapter_canary",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn abort(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<AliasView>, ApiError> {
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    change.view().await?;
    if !adapter_canary::abort(&mut change.tx, change.adapter_id, &change.alias, BY_REQUEST).await? {
        return Err(no_canary(&change.whole));
    }
    change.commit().await
}

/// Roll an alias back to the version that it pointed to before its last move.
///
/// A second rollback in a row is refused with 409, as is one while a canary runs.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/aliases/{alias}/rollback", tag = "Adapters",
    operation_id = "roll_back_adapter_alias",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn roll_back(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<AliasView>, ApiError> {
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    let moved = adapter_alias::roll_back(&mut change.tx, change.project, change.adapter_id, &change.alias).await;
    let moved = moved.map_err(ApiError::on_read(&change.whole))?;
    match moved {
        Rollback::Moved => change.commit().await,
        Rollback::Nothing => {
            let whole = &change.whole;
            let message = format!("The alias '{whole}' has no earlier version to return to. Move it to a version.");
            Err(ApiError::Conflict(message))
        }
        Rollback::Canary(canary) => Err(change.canary_runs(canary)),
    }
}

/// Start a shadow of an alias, in place of the present one.
///
/// After an answer was sent, the version answers a copy of the request, for `percent` of the requests. The copy's
/// answer is compared and discarded: only counts are kept. Copies are not charged, and yield to other requests.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/aliases/{alias}/shadow", tag = "Adapters",
    operation_id = "start_adapter_shadow",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    request_body = NewShadow,
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn start_shadow(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
    Body(new): Body<NewShadow>,
) -> Result<Json<AliasView>, ApiError> {
    let percent = new.share()?;
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    change.view().await?;
    let to = change.version("version", &new.version).await?;
    adapter_shadow::start(&mut change.tx, change.project, &change.alias, &to, percent).await?;
    change.commit().await
}

/// Stop the shadow of an alias. Its counts are kept.
#[utoipa::path(delete, path = "/v1/adapters/{adapter}/aliases/{alias}/shadow", tag = "Adapters",
    operation_id = "stop_adapter_shadow",
    params(("adapter" = String, Path, description = "The adapter's name."), ("alias" = String, Path)),
    responses((status = 200, body = AliasView), (status = "4XX", body = ErrorBody)))]
pub async fn stop_shadow(
    State(app): State<App>,
    Caller(holder): Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<AliasView>, ApiError> {
    let mut change = AliasChange::begin(&app, holder.project_id, (name, alias)).await?;
    if !adapter_shadow::stop(&mut change.tx, change.adapter_id, &change.alias).await? {
        return Err(ApiError::NotFound { noun: "shadow of the alias", name: change.whole });
    }
    change.commit().await
}

fn no_canary(whole: &str) -> ApiError {
    ApiError::Conflict(format!("No canary runs on '{whole}'."))
}
