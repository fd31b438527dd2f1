//! Batches: many requests in one file, processed when there is capacity. The scheduler does the work.

use attune_domain::{
    access::{Role, Scope},
    batch::BatchState,
    id::{Batch as BatchKind, FileId},
};
use attune_store::{
    batches::batch::{self, NewBatch as NewRow},
    error::StoreError,
    files::file,
    jobs::unfinished,
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::storage,
    http::{
        json_body::Body,
        pagination::{List, Params},
        path_id::{parse_id, truncated},
    },
    policy::Policy,
    wire::batch::{BatchView, NewBatch},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("create_batch", Scope::Inference, Role::Member),
    Policy::project("list_batches", Scope::Inference, Role::Viewer),
    Policy::project("retrieve_batch", Scope::Inference, Role::Viewer).retrieves(Thing::Batch),
    Policy::project("cancel_batch", Scope::Inference, Role::Member).names(Thing::Batch),
];

/// Create a batch from a file of requests.
///
/// The response is returned immediately. The file is validated line by line before any request is processed. Each
/// request may name another model. Successful responses and errors are written to one file each, by `custom_id`.
#[utoipa::path(post, path = "/v1/batches", tag = "Batches", operation_id = "create_batch", request_body = NewBatch,
    responses((status = 200, body = BatchView), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewBatch>,
) -> Result<Json<BatchView>, ApiError> {
    let endpoint = new.check()?;
    let project = holder.project_id;
    let mut tx = app.tenant(project).await?;
    let row = NewRow {
        input_file_id: input(&mut tx, project, &new.input_file_id).await?,
        endpoint,
        completion_window: new.completion_window,
        metadata: new.metadata.map(|metadata| json!(metadata)),
        output_expires_seconds: new.output_expires_after.and_then(|after| i32::try_from(after.seconds).ok()),
    };
    unfinished::admit(&mut tx, project, unfinished::Kind::Batches, app.limits.unfinished_batches).await?;
    let made = batch::insert(&mut tx, project, &row).await?;
    storage::check(&app, &mut tx, project, storage::NOTHING).await?;
    tx.commit().await?;
    Ok(Json(made.into()))
}

/// Returns the input file of a batch, locked against deletion until the transaction ends.
async fn input(tx: &mut PgConnection, project: attune_domain::id::ProjectId, named: &str) -> Result<FileId, ApiError> {
    const PARAM: &str = "input_file_id";
    let shown = truncated(named);
    let missing = || ApiError::Invalid {
        param: Some(PARAM.into()),
        code: "file_not_found",
        message: format!("Invalid '{PARAM}': there is no file '{shown}'."),
    };
    let id: FileId = named.parse().map_err(|_| missing())?;
    let file = match file::lock_for_job(tx, project, id).await {
        Err(StoreError::NotFound(_)) => return Err(missing()),
        found => found?,
    };
    if file.purpose != "batch" {
        let message = format!("Invalid '{PARAM}': the purpose of '{shown}' is '{}'; it must be 'batch'.", file.purpose);
        return Err(ApiError::invalid(PARAM, message));
    }
    Ok(file.file_id)
}

/// List batches, newest first.
#[utoipa::path(get, path = "/v1/batches", tag = "Batches", operation_id = "list_batches",
    params(
        ("after" = Option<String>, Query, pattern = "^batch_[0-9a-f]{32}$",
            description = "Return batches after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Page size. Defaults to 20."),
    ),
    responses((status = 200, body = List<BatchView>), (status = "4XX", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    Caller(holder): Caller,
    mut query: Params,
) -> Result<Json<List<BatchView>>, ApiError> {
    let (after, limit) = (query.after::<BatchKind>()?, query.limit(20, 100)?);
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let batches = batch::list(&mut db, holder.project_id, after, limit + 1).await?;
    let views = batches.into_iter().map(BatchView::from).collect();
    Ok(Json(List::cut(views, limit, |batch: &BatchView| batch.id.clone())))
}

/// Retrieve a batch.
#[utoipa::path(get, path = "/v1/batches/{batch_id}", tag = "Batches", operation_id = "retrieve_batch",
    params(("batch_id" = String, Path)),
    responses((status = 200, body = BatchView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<BatchView>, ApiError> {
    let mut db = app.tenant(holder.project_id).await?;
    let found = batch::get(&mut db, holder.project_id, parse_id(&id)?).await;
    Ok(Json(found.map_err(ApiError::on_read(id))?.into()))
}

/// Cancel a batch.
///
/// Requests in progress are stopped. Responses that were finished before are in the output file once the status is
/// `cancelled`.
#[utoipa::path(post, path = "/v1/batches/{batch_id}/cancel", tag = "Batches", operation_id = "cancel_batch",
    params(("batch_id" = String, Path)),
    responses((status = 200, body = BatchView), (status = "4XX", body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
) -> Result<Json<BatchView>, ApiError> {
    let mut tx = app.tenant(holder.project_id).await?;
    let cancelled = match batch::cancel(&mut tx, holder.project_id, parse_id(&id)?).await {
        Err(StoreError::Batch(step)) => return Err(ended(step.from)),
        cancelled => cancelled.map_err(ApiError::on_read(id))?,
    };
    tx.commit().await?;
    Ok(Json(cancelled.into()))
}

fn ended(state: BatchState) -> ApiError {
    ApiError::Conflict(format!("The batch has ended, it is {}; it cannot be cancelled any more.", state.name()))
}
