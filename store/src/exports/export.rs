//! Exports, for their users: created, listed, deleted. A deleted export is hidden immediately; its process and its node
//! are ended by the reconciler, and its files and its row by the sweep.

use attune_domain::{
    bytes::Bytes,
    export::{Drift, ExportSpec, ExportState},
    id::{BaseModelId, ExportId, FileId, ProjectId},
    run::Blob,
    spec::{AdapterSpec, Quantization},
};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    adapters::base_model,
    error::{StoreError, json, named, quantization, to_json},
    ids,
    queue::{self, EnsureExport},
    sweep_batch::Batch,
};

/// The reason why an export failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportError {
    /// The stable, machine-readable code.
    pub code: String,
    /// The message.
    pub message: String,
}

/// An export's row, with its files.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// The export's ID.
    pub export_id: ExportId,
    /// The project's ID.
    pub project_id: ProjectId,
    /// The name of the exported model.
    pub model_name: String,
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The base model's name.
    pub base_model: String,
    /// The quantization of the base that the adapter was trained over.
    pub quantization: Quantization,
    /// The adapter's configuration.
    pub adapter: AdapterSpec,
    /// The form and its options.
    pub spec: ExportSpec,
    /// The file that the importance matrix is computed from; `None`: it has none.
    pub imatrix_file: Option<FileId>,
    /// The state.
    pub state: ExportState,
    /// The reason why it still waits for a machine.
    pub waiting_reason: Option<String>,
    /// The bytes of weights that are written.
    pub done: Bytes,
    /// The bytes of all weights; `None`: not known yet.
    pub total: Option<Bytes>,
    /// The difference from the served adapter, once measured.
    pub drift: Option<Drift>,
    /// The files of a succeeded export, by name.
    pub files: Vec<Blob>,
    /// The reason, if it failed.
    pub error: Option<ExportError>,
    /// The time of the request.
    pub created_at: DateTime<Utc>,
    /// The time of the last attempt's start.
    pub started_at: Option<DateTime<Utc>>,
    /// The time of the end.
    pub ended_at: Option<DateTime<Utc>>,
    /// The time at which it is deleted.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A new export; every field is checked.
#[derive(Debug, Clone)]
pub struct NewExport {
    /// The name of the exported model.
    pub model_name: String,
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The quantization of the base that the adapter was trained over.
    pub quantization: Quantization,
    /// The adapter's configuration.
    pub adapter: AdapterSpec,
    /// The adapter's files.
    pub adapter_files: Vec<Blob>,
    /// The text of the version's manifest.
    pub manifest: Option<String>,
    /// The form and its options.
    pub spec: ExportSpec,
    /// The file that the importance matrix is computed from; `None`: it has none.
    pub imatrix_file: Option<FileId>,
}

/// The row as PostgreSQL returns it.
struct Row {
    export_id: Uuid,
    project_id: Uuid,
    model_name: String,
    base_model_id: Uuid,
    base_model: String,
    quantization: String,
    shape: serde_json::Value,
    spec: serde_json::Value,
    imatrix_file_id: Option<Uuid>,
    state: String,
    waiting_reason: Option<String>,
    done_bytes: i64,
    total_bytes: Option<i64>,
    drift: Option<serde_json::Value>,
    files: serde_json::Value,
    error_code: Option<String>,
    error_message: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Export {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let error = row.error_code.zip(row.error_message).map(|(code, message)| ExportError { code, message });
        Ok(Self {
            export_id: ExportId::new(row.export_id),
            project_id: ProjectId::new(row.project_id),
            model_name: row.model_name,
            base_model_id: BaseModelId::new(row.base_model_id),
            base_model: row.base_model,
            quantization: quantization("export.quantization", &row.quantization)?,
            adapter: json("export.shape", row.shape)?,
            spec: json("export.spec", row.spec)?,
            imatrix_file: row.imatrix_file_id.map(FileId::new),
            state: state(&row.state)?,
            waiting_reason: row.waiting_reason,
            done: Bytes::from_i64(row.done_bytes),
            total: row.total_bytes.map(Bytes::from_i64),
            drift: row.drift.map(|drift| json("export.drift", drift)).transpose()?,
            files: json("export_file", row.files)?,
            error,
            created_at: row.created_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            expires_at: row.expires_at,
        })
    }
}

pub(crate) fn state(name: &str) -> Result<ExportState, StoreError> {
    named("export.state", name, "state")
}

/// Inserts an export, and pushes the message that has it placed.
///
/// # Errors
/// [`StoreError::NotFound`]: its base model was deleted. [`StoreError::Database`], [`StoreError::Queue`].
pub async fn insert(tx: &mut PgConnection, project: ProjectId, new: &NewExport) -> Result<Export, StoreError> {
    let id: ExportId = ids::id();
    sqlx::query!(
        "insert into export (export_id, project_id, model_name, base_model_id, quantization, shape, adapter_files,
             manifest, spec, imatrix_file_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        id.uuid(),
        project.uuid(),
        new.model_name,
        new.base_model_id.uuid(),
        new.quantization.name(),
        to_json("export.shape", &new.adapter)?,
        to_json("export.adapter_files", &new.adapter_files)?,
        new.manifest,
        to_json("export.spec", &new.spec)?,
        new.imatrix_file.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    base_model::still_there(tx, new.base_model_id).await?;
    queue::push(tx, &EnsureExport { export_id: id }).await?;
    get(tx, project, id).await
}

/// Returns a project's export.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, was deleted, or is another project's. [`StoreError::Database`].
pub async fn get(db: &mut PgConnection, project: ProjectId, id: ExportId) -> Result<Export, StoreError> {
    let filter = Filter { project: Some(project), id: Some(id), ..Filter::default() };
    select(db, filter, 1).await?.pop().ok_or(StoreError::NotFound("export"))
}

/// Returns any project's export, for the platform.
///
/// # Errors
/// [`StoreError::NotFound`]: it does not exist, or was deleted. [`StoreError::Database`].
pub async fn load(db: &mut PgConnection, id: ExportId) -> Result<Export, StoreError> {
    let filter = Filter { id: Some(id), ..Filter::default() };
    select(db, filter, 1).await?.pop().ok_or(StoreError::NotFound("export"))
}

/// Returns a project's exports, newest first: at most `limit` after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    after: Option<ExportId>,
    limit: i64,
) -> Result<Vec<Export>, StoreError> {
    select(db, Filter { project: Some(project), after, ..Filter::default() }, limit).await
}

/// The conditions of a query.
#[derive(Default)]
struct Filter {
    project: Option<ProjectId>,
    id: Option<ExportId>,
    after: Option<ExportId>,
}

async fn select(db: &mut PgConnection, filter: Filter, limit: i64) -> Result<Vec<Export>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select e.export_id, e.project_id, e.model_name, e.base_model_id, b.name as base_model, e.quantization,
             e.shape, e.spec, e.imatrix_file_id, e.state, e.waiting_reason, e.done_bytes, e.total_bytes, e.drift,
             e.error_code, e.error_message, e.created_at, e.started_at, e.ended_at, e.expires_at,
             coalesce((select jsonb_agg(jsonb_build_object('name', f.name, 'sha256', f.sha256, 'bytes', f.bytes)
                 order by f.name) from export_file f where f.export_id = e.export_id and f.is_published),
                 '[]'::jsonb) as "files!"
         from export e join base_model b using (base_model_id)
         where e.deleted_at is null and ($1::uuid is null or e.project_id = $1)
             and ($2::uuid is null or e.export_id = $2) and ($3::uuid is null or e.export_id < $3)
         order by e.export_id desc limit $4"#,
        filter.project.map(|id| id.uuid()),
        filter.id.map(|id| id.uuid()),
        filter.after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Export::try_from).collect()
}

/// Deletes a project's export; a running one is stopped.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn delete(tx: &mut PgConnection, project: ProjectId, id: ExportId) -> Result<(), StoreError> {
    let deleted = sqlx::query!(
        "update export set deleted_at = now() where export_id = $1 and project_id = $2 and deleted_at is null",
        id.uuid(),
        project.uuid(),
    )
    .execute(tx)
    .await?;
    if deleted.rows_affected() == 0 { Err(StoreError::NotFound("export")) } else { Ok(()) }
}

/// Deletes the exports that have expired, and the rows of deleted exports without files.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn expire(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let expired = sqlx::query!("update export set deleted_at = now() where deleted_at is null and expires_at < now()",)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "delete from export where deleted_at < now() - interval '1 day'
             and not exists (select from export_file f where f.export_id = export.export_id)",
    )
    .execute(tx)
    .await?;
    Ok(Batch { gone: expired.rows_affected(), has_more: false })
}
