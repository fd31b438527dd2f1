//! Deployments: create, list, retrieve, update, delete. The scheduler's autoscaler starts and stops the replicas.

use attune_domain::{
    access::{Role, Scope},
    id::Deployment as DeploymentKind,
    memory::ServedModels,
    offer::{Offer, ReplicaKind},
};
use attune_store::{
    adapters::base_model,
    pools::{
        deployment::{self, Bounds, POOL_KEY},
        deployment_quota::{Exceeded, MOST_PER_PROJECT},
    },
    replica::ServedBase,
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};

use crate::{
    app::App,
    auth::caller::Caller,
    draft_model::{self, Drafted},
    error::{ApiError, ErrorBody},
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::parse_id,
    },
    jobs::satisfiable,
    pinned_adapters::{self, PinnedTo},
    policy::Policy,
    wire::{
        deployment::{DeploymentChange, DeploymentView, NewDeployment},
        file::Deleted,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_deployment", Scope::ModelsWrite, Role::Member),
    Policy::project("list_deployments", Scope::ModelsRead, Role::Viewer),
    Policy::project("retrieve_deployment", Scope::ModelsRead, Role::Viewer).retrieves(Thing::Deployment),
    Policy::project("update_deployment", Scope::ModelsWrite, Role::Member).names(Thing::Deployment),
    Policy::project("delete_deployment", Scope::ModelsWrite, Role::Member).names(Thing::Deployment),
];

/// Create a deployment.
///
/// A deployment gives the project replicas of its own of a base model: it sets how many may serve requests, how many
/// run all the time, and their engine and device. Their hours are charged instead of the tokens of their answers.
/// Without a deployment, requests use the replicas that projects share. A project may have 50 deployments, one for each
/// base model in each quantization.
#[utoipa::path(post, path = "/v1/deployments", tag = "Deployments", operation_id = "create_deployment",
    request_body = NewDeployment,
    responses((status = 200, body = DeploymentView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewDeployment>,
) -> Result<Json<DeploymentView>, ApiError> {
    let bounds = new.bounds()?;
    let quantization = new.quantization(app.inference.serving.base_quantization)?;
    let draft = match &new.draft_model {
        Some(name) => Some(draft_model::resolve(&app, holder.project_id, name, Drafted::Model(&new.model)).await?),
        None => None,
    };
    let kind = new.kind(draft, quantization)?;
    let offers = offers(&app).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    let base = base_model::by_name(&mut tx, holder.project_id, &new.model)
        .await?
        .ok_or_else(|| ApiError::ModelNotFound(new.model.clone()))?;
    if let Some(reason) = kind.engine.base_refusal(&base.architecture) {
        return Err(ApiError::invalid("engine", format!("Invalid 'engine' for '{}': {reason}.", base.name)));
    }
    let draft = draft_model::get(&mut tx, kind.draft).await?;
    let served = ServedModels {
        draft: draft.as_ref().map(|draft| &draft.architecture),
        kv_cache_dtype: kind.kv_cache_dtype,
        ..ServedModels::new(&base.architecture, quantization, app.inference.serving.compute)
    };
    satisfiable::check_replica(served, kind, &offers)?;
    let pool = ServedBase::shared(base.base_model_id, quantization);
    let names = new.pinned_adapters.as_deref().unwrap_or_default();
    let pinned_adapters =
        pinned_adapters::resolve(&mut tx, holder.project_id, names, PinnedTo { base: pool, engine: kind.engine })
            .await?;
    let bounds = Bounds { pinned_adapters, ..bounds };
    let made = deployment::insert(&mut tx, holder.project_id, pool, kind, &bounds).await;
    let made = made.map_err(|error| {
        if error.on_constraint(POOL_KEY) {
            let model = &base.name;
            ApiError::Conflict(format!("The project has a deployment of '{model}' in {quantization}. Update that one."))
        } else {
            error.into()
        }
    })?;
    let made = made.map_err(refused)?;
    tx.commit().await?;
    Ok(Json(made.into()))
}

async fn offers(app: &App) -> Result<Vec<Offer>, ApiError> {
    let mut platform = app.platform().await?;
    Ok(satisfiable::idle_offers(&mut platform).await?)
}

fn refused(exceeded: Exceeded) -> ApiError {
    ApiError::Conflict(match exceeded {
        Exceeded::Deployments => {
            format!("The project has {MOST_PER_PROJECT} deployments, the most that are allowed.")
        }
        Exceeded::Replicas { most } => format!(
            "The project's deployments may have {most} replicas together. Lower 'max_replicas', or that of another \
             deployment."
        ),
    })
}

/// List deployments, newest first.
#[utoipa::path(get, path = "/v1/deployments", tag = "Deployments", operation_id = "list_deployments",
    params(
        ("after" = Option<String>, Query, pattern = "^deploy_[0-9a-f]{32}$",
            description = "Return deployments after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<DeploymentView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<DeploymentView>>, ApiError> {
    let (after, limit) = (query.after::<DeploymentKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let deployments = deployment::list(&mut db, holder.project_id, after, limit + 1).await?;
    let views = deployments.into_iter().map(DeploymentView::from).collect();
    Ok(Json(List::cut(views, limit, |deployment: &DeploymentView| deployment.id.clone())))
}

/// Retrieve a deployment.
#[utoipa::path(get, path = "/v1/deployments/{deployment_id}", tag = "Deployments",
    operation_id = "retrieve_deployment", params(("deployment_id" = String, Path)),
    responses((status = 200, body = DeploymentView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<DeploymentView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let found = deployment::get(&mut db, holder.project_id, parse_id(&id)?).await;
    Ok(Json(found.map_err(ApiError::on_read(id))?.into()))
}

/// Update a deployment: its name, its bounds, its engine and device, its decoding, and its pinned adapters.
///
/// Omitted fields are not changed. Replicas beyond a lower maximum, and those with another engine, device, draft model
/// or type of keys and values, complete their requests before they are stopped.
#[utoipa::path(post, path = "/v1/deployments/{deployment_id}", tag = "Deployments",
    operation_id = "update_deployment", request_body = DeploymentChange,
    params(("deployment_id" = String, Path)),
    responses((status = 200, body = DeploymentView), (status = "4XX", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    Body(change): Body<DeploymentChange>,
) -> Result<Json<DeploymentView>, ApiError> {
    let offers = offers(&app).await?;
    let deployment_id = parse_id(&id)?;
    let draft = draft_model::changed(&app, holder.project_id, deployment_id, change.draft_model.as_ref()).await?;
    let mut tx = app.tenant(holder.project_id).await?;
    let before = deployment::lock(&mut tx, holder.project_id, deployment_id).await.map_err(ApiError::on_read(id))?;
    let with_draft = ReplicaKind { draft: draft.unwrap_or(before.kind.draft), ..before.kind };
    let kind = change.kind(with_draft, before.base.quantization)?;
    let mut pinned = change.pinned_adapters.clone();
    if kind != before.kind {
        let base = base_model::get(&mut tx, before.base.base_model_id).await?;
        let draft = draft_model::get(&mut tx, kind.draft).await?;
        let served = ServedModels {
            draft: draft.as_ref().map(|draft| &draft.architecture),
            kv_cache_dtype: kind.kv_cache_dtype,
            ..ServedModels::new(&base.architecture, before.base.quantization, app.inference.serving.compute)
        };
        satisfiable::check_replica(served, kind, &offers)?;
        // The new engine must be able to serve those that are pinned already.
        pinned = pinned.or_else(|| Some(before.bounds.pinned_adapters.iter().map(ToString::to_string).collect()));
    }
    let mut bounds = change.applied(before.bounds)?;
    if let Some(names) = pinned {
        let to = PinnedTo { base: before.base, engine: kind.engine };
        bounds.pinned_adapters = pinned_adapters::resolve(&mut tx, holder.project_id, &names, to).await?;
    }
    let updated = deployment::update(&mut tx, holder.project_id, deployment_id, kind, &bounds).await?;
    let updated = updated.map_err(refused)?;
    tx.commit().await?;
    Ok(Json(updated.into()))
}

/// Delete a deployment.
///
/// Its replicas complete their requests. The model can still be used, on the replicas that projects share.
#[utoipa::path(delete, path = "/v1/deployments/{deployment_id}", tag = "Deployments",
    operation_id = "delete_deployment", params(("deployment_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let deployment_id = parse_id(&id)?;
    deployment::delete(&mut tx, holder.project_id, deployment_id).await.map_err(ApiError::on_read(id))?;
    tx.commit().await?;
    Ok(Json(Deleted { id: deployment_id.to_string(), object: "deployment", deleted: true }))
}
