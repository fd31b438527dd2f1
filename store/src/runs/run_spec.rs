//! The task of a run, built from the rows when the trainer requests it, with new presigned URLs.

use attune_domain::{
    bytes::Bytes,
    id::{AdapterVersionId, FileId},
    run::{
        CONTRACT_VERSION, RemoteFile,
        task::{ContinueFrom, Resume, RunHeader, TaskBase, TrainTask},
    },
};
use sqlx::PgConnection;

use crate::{
    adapters::adapter,
    digests,
    error::{StoreError, json},
    files::objects::Objects,
    jobs::{checkpoint, job, job_trace, memory_ladder},
    runs::run::Run,
};

/// The files of a PEFT folder that a trainer needs.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Returns the task of a run that has not ended.
///
/// # Errors
/// [`StoreError::NotFound`]: a file's row does not exist. [`StoreError::Object`], [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, objects: &Objects, run: &Run) -> Result<TrainTask, StoreError> {
    let job = job::load(conn, run.job_id).await?;
    let base = base(conn, objects, job.base_model_id.uuid()).await?;
    let training_file = dataset(conn, objects, job.training_file_id).await?;
    let validation_file = match job.validation_file_id {
        Some(id) => Some(dataset(conn, objects, id).await?),
        None => None,
    };
    let continue_from = match job.continue_from {
        Some(id) => Some(continue_from(conn, objects, id).await?),
        None => None,
    };
    let resume = match run.resume_id {
        Some(id) => Some(resume(conn, objects, run, id).await?),
        None => None,
    };
    Ok(TrainTask {
        run: RunHeader {
            version: CONTRACT_VERSION,
            job_id: run.job_id,
            run_id: run.run_id,
            run_lease: run.run_lease,
            heartbeat_seconds: run.heartbeat_seconds,
            traceparent: job_trace::of(conn, run.job_id).await?,
        },
        base,
        training_file,
        validation_file,
        train: job.spec,
        template_now: job.created_at.timestamp(),
        plan: run.plan.clone(),
        always_warm_up: memory_ladder::may_run_out(conn, run).await?,
        continue_from,
        resume,
    })
}

async fn resume(
    conn: &mut PgConnection,
    objects: &Objects,
    run: &Run,
    id: attune_domain::id::CheckpointId,
) -> Result<Resume, StoreError> {
    let checkpoint = checkpoint::get(conn, run.job_id, id).await?;
    let mut files = Vec::with_capacity(checkpoint.files.len());
    for blob in &checkpoint.files {
        files.push(objects.remote_file(&blob.name, blob.sha256, blob.bytes).await?);
    }
    Ok(Resume { checkpoint_id: id, step: checkpoint.step, files })
}

/// Returns the adapter that training continues.
async fn continue_from(
    conn: &mut PgConnection,
    objects: &Objects,
    id: AdapterVersionId,
) -> Result<ContinueFrom, StoreError> {
    let blobs = adapter::files(conn, id).await?;
    let mut files = Vec::with_capacity(ADAPTER_FILES.len());
    for name in ADAPTER_FILES {
        let blob = blobs.iter().find(|blob| blob.name == name).ok_or(StoreError::NotFound("file of the adapter"))?;
        files.push(objects.remote_file(&blob.name, blob.sha256, blob.bytes).await?);
    }
    Ok(ContinueFrom { adapter_version_id: id, files })
}

/// Returns a base model, with new presigned URLs.
pub(crate) async fn base(
    conn: &mut PgConnection,
    objects: &Objects,
    base_model_id: uuid::Uuid,
) -> Result<TaskBase, StoreError> {
    let base =
        sqlx::query!("select name, digest, origin, license from base_model where base_model_id = $1", base_model_id)
            .fetch_optional(&mut *conn)
            .await?
            .ok_or(StoreError::NotFound("base model"))?;
    let rows = sqlx::query!(
        "select name, sha256, bytes from base_model_file where base_model_id = $1 order by name",
        base_model_id,
    )
    .fetch_all(conn)
    .await?;
    let mut files = Vec::with_capacity(rows.len());
    for row in rows {
        let sha256 = digests::sha256("base_model_file.sha256", &row.sha256)?;
        files.push(objects.remote_file(&row.name, sha256, Bytes::from_i64(row.bytes)).await?);
    }
    Ok(TaskBase {
        files,
        digest: digests::sha256("base_model.digest", &base.digest)?,
        name: base.name,
        origin: base.origin.map(|origin| json("base_model.origin", origin)).transpose()?,
        license: base.license,
    })
}

/// Returns a dataset file; the job keeps access to one that its user has deleted meanwhile.
pub(crate) async fn dataset(conn: &mut PgConnection, objects: &Objects, id: FileId) -> Result<RemoteFile, StoreError> {
    let row = sqlx::query!(
        r#"select filename, coalesce(rows_sha256, sha256) as "sha256!", coalesce(rows_bytes, bytes) as "bytes!"
           from file where file_id = $1"#,
        id.uuid(),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(StoreError::NotFound("file"))?;
    let sha256 = digests::sha256("file.sha256", &row.sha256)?;
    objects.remote_file(&row.filename, sha256, Bytes::from_i64(row.bytes)).await
}
