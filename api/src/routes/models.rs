//! Models: the accepted values of a request's `model`.

use attune_domain::access::{Role, Scope};
use attune_store::{
    adapters::{
        adapter::{self, Model, Needed},
        base_model,
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
    http::pagination::{List, Params},
    policy::Policy,
    wire::{file::Deleted, model::ModelView},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("list_models", Scope::ModelsRead, Role::Viewer),
    Policy::project("retrieve_model", Scope::ModelsRead, Role::Viewer).retrieves(Thing::Adapter),
    Policy::project("delete_model", Scope::ModelsWrite, Role::Member).names(Thing::Adapter),
];

/// List models: base models, then the project's fine-tuned models, newest first.
#[utoipa::path(get, path = "/v1/models", tag = "Models", operation_id = "list_models",
    responses((status = 200, body = List<ModelView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<List<ModelView>>, ApiError> {
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let bases = base_model::list(&mut db, holder.project_id).await?;
    let tuned = adapter::list(&mut db, holder.project_id, None, None, i64::MAX).await?;
    let bases = bases.into_iter().map(ModelView::base);
    let models = bases.chain(tuned.into_iter().map(|version| ModelView::tuned(version, &holder.project))).collect();
    Ok(Json(List::whole(models, |model: &ModelView| model.id.clone())))
}

/// Retrieve a model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "Models", operation_id = "retrieve_model",
    params(("model" = String, Path,
        description = "The model's name, or `name@alias` or `name@number` of a fine-tuned model.")),
    responses((status = 200, body = ModelView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<ModelView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let model = adapter::resolve(&mut db, holder.project_id, &name).await.map_err(ApiError::on_read(name))?;
    Ok(Json(match model {
        Model::Base(base) => ModelView::base(base),
        Model::Tuned(version) => ModelView::tuned(version, &holder.project),
        Model::Checkpoint(named) => ModelView::checkpoint(named, &holder.project),
    }))
}

/// Delete a fine-tuned model.
///
/// Its adapter version is deleted with it, permanently. Base models are deleted at `/v1/base_models/{name}`.
#[utoipa::path(delete, path = "/v1/models/{model}", tag = "Models", operation_id = "delete_model",
    params(("model" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(name): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let model = adapter::resolve(&mut tx, holder.project_id, &name).await.map_err(ApiError::on_read(&name))?;
    let refused = match model {
        Model::Base(_) => "It is a base model; delete it with DELETE /v1/base_models/{name}.",
        Model::Checkpoint(_) => "A checkpoint is deleted with its fine-tuned model. Delete that model.",
        Model::Tuned(_) => "",
    };
    if !refused.is_empty() {
        return Err(ApiError::unsupported("model", refused));
    }
    let name = model.name().to_owned();
    match adapter::delete(&mut tx, holder.project_id, &name).await.map_err(ApiError::on_read(&name))? {
        Some(Needed::Job(job)) => {
            let message = format!("The job {job} continues from this model; cancel the job first, or let it end.");
            return Err(ApiError::Conflict(message));
        }
        Some(Needed::Alias(alias)) => {
            return Err(ApiError::Conflict(format!("'{alias}' points to this model. Move or delete the alias first.")));
        }
        Some(Needed::Trial(alias)) => {
            let message = format!("This model is the canary or the shadow of '{alias}'. End that first.");
            return Err(ApiError::Conflict(message));
        }
        None => {}
    }
    tx.commit().await?;
    Ok(Json(Deleted { id: name, object: "model", deleted: true }))
}
