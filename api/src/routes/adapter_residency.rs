//! The residency of adapter versions: where replicas have them, and the prefetch of versions.

use attune_domain::{
    access::{Role, Scope},
    id::ProjectId,
};
use attune_store::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_prefetch::{self, MOST_PER_PROJECT},
    },
    pools::deployment,
    replica,
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
    http::json_body::Body,
    policy::Policy,
    routes::adapters::find,
    wire::adapter::residency::{NewPrefetch, ReplicaResidencyView, ResidencyView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("retrieve_adapter_residency", Scope::ModelsRead, Role::Viewer).names(Thing::Adapter),
    Policy::project("prefetch_adapter", Scope::ModelsWrite, Role::Member).names(Thing::Adapter),
];

/// Retrieve the residency of an adapter version: where each replica of its base has it.
///
/// Replicas report every few seconds.
#[utoipa::path(get, path = "/v1/adapters/{adapter}/residency", tag = "Adapters",
    operation_id = "retrieve_adapter_residency",
    params(("adapter" = String, Path, description = "As for `GET /v1/adapters/{adapter}`.")),
    responses((status = 200, body = ResidencyView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<ResidencyView>, ApiError> {
    let project = holder.project_id;
    let mut tx = app.tenant(project).await?;
    let version = find(&mut tx, project, name).await?;
    Ok(Json(view(&mut tx, project, &version).await?))
}

/// Prefetch an adapter version.
///
/// The replicas of its base load it with their next report, ahead of requests, and evict other adapters first for some
/// time. A prefetch starts no replica; one that starts in this time loads the version too. It replaces an earlier
/// prefetch of the version. A project may have 16 at the same time.
#[utoipa::path(post, path = "/v1/adapters/{adapter}/prefetch", tag = "Adapters", operation_id = "prefetch_adapter",
    params(("adapter" = String, Path, description = "As for `GET /v1/adapters/{adapter}`.")),
    request_body = NewPrefetch,
    responses((status = 200, body = ResidencyView), (status = "4XX", body = ErrorBody)))]
pub async fn prefetch(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
    Body(new): Body<NewPrefetch>,
) -> Result<Json<ResidencyView>, ApiError> {
    let (project, seconds) = (holder.project_id, new.checked()?);
    let mut tx = app.tenant(project).await?;
    let version = adapter::lock(&mut tx, project, &name).await.map_err(ApiError::on_read(name))?;
    if adapter_prefetch::set(&mut tx, project, version.adapter_version_id, seconds).await?.is_none() {
        let message = format!("The project has {MOST_PER_PROJECT} prefetched versions, the most that are allowed.");
        return Err(ApiError::Conflict(message));
    }
    let view = view(&mut tx, project, &version).await?;
    tx.commit().await?;
    Ok(Json(view))
}

async fn view(tx: &mut PgConnection, project: ProjectId, version: &AdapterVersion) -> Result<ResidencyView, ApiError> {
    let id = version.adapter_version_id;
    let until = adapter_prefetch::until(tx, project, id).await?;
    let pool = deployment::pool_of(tx, project, version.base_model_id, version.quantization).await?;
    let replicas = replica::of_version(tx, pool, id).await?;
    Ok(ResidencyView {
        object: "adapter.residency",
        adapter_version: id.to_string(),
        model: version.model_name.clone(),
        prefetched_until: until.map(|until| until.timestamp()),
        replicas: replicas.into_iter().map(ReplicaResidencyView::from).collect(),
    })
}
