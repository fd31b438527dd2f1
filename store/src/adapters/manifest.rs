//! The `attune_manifest.json` of a new version, built from the rows in the transaction that creates the version.

use attune_domain::{
    dataset::file_facts::FileFacts,
    digest::Sha256,
    id::{FileId, NodeId, RunId},
    manifest::{Attempt, Base, Before, Code, Data, FORMAT, Manifest, Metrics, Origin, Training},
    run::{CONTRACT_VERSION, Gate},
};
use sqlx::PgConnection;

use crate::{
    adapters::adapter::AdapterVersion,
    digests,
    error::{StoreError, json},
    jobs::job::Job,
};

/// Returns the manifest's text; it is stored byte for byte, since its digest is published.
pub(crate) fn write(made: &AdapterVersion, base_digest: Sha256, origin: Origin) -> Result<String, StoreError> {
    let manifest = Manifest {
        format: FORMAT,
        id: made.adapter_version_id,
        adapter: made.adapter.clone(),
        version: made.version,
        model: made.model_name.clone(),
        created_at: made.created_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        base_model: Base { name: made.base_model.clone(), digest: base_digest, quantization: made.quantization },
        spec: made.spec.clone(),
        origin,
        code: Code { version: env!("CARGO_PKG_VERSION").into(), contract: CONTRACT_VERSION },
        chat_template_sha256: made.chat_template_sha256,
        digest: made.digest,
        files: made.files.clone(),
    };
    let text = serde_json::to_string_pretty(&manifest);
    Ok(text.map_err(|e| StoreError::Corrupt { column: "adapter_version.manifest", cause: Box::new(e) })? + "\n")
}

/// Returns the training section at the moment when `run` publishes.
pub(crate) async fn training(
    db: &mut PgConnection,
    job: &Job,
    run: RunId,
    trained_tokens: u64,
    gate: Gate,
) -> Result<Training, StoreError> {
    let facts = job.token_facts.as_ref();
    let training_data = data(db, job.training_file_id, facts.map(|facts| facts.training)).await?;
    let validation_data = match job.validation_file_id {
        Some(id) => Some(data(db, id, facts.and_then(|facts| facts.validation)).await?),
        None => None,
    };
    Ok(Training {
        job: job.job_id,
        run: attempt(db, run).await?,
        training_data,
        validation_data,
        continued_from: before(db, job).await?,
        seed: job.spec.seed,
        template_now: job.created_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        train: job.spec.clone(),
        metrics: metrics(db, job, trained_tokens).await?,
        gate: Some(gate),
    })
}

async fn data(db: &mut PgConnection, file: FileId, facts: Option<FileFacts>) -> Result<Data, StoreError> {
    let sha256 = sqlx::query_scalar!("select sha256 from file where file_id = $1", file.uuid()).fetch_one(db).await?;
    let sha256 = digests::sha256("file.sha256", &sha256)?;
    Ok(Data { file, sha256, rows: facts.map(|facts| facts.rows), tokens: facts.map(|facts| facts.tokens) })
}

async fn before(db: &mut PgConnection, job: &Job) -> Result<Option<Before>, StoreError> {
    let Some(id) = job.continue_from else { return Ok(None) };
    let digest = sqlx::query_scalar!("select digest from adapter_version where adapter_version_id = $1", id.uuid())
        .fetch_one(db)
        .await?;
    Ok(Some(Before { id, digest: digests::sha256("adapter_version.digest", &digest)? }))
}

async fn attempt(db: &mut PgConnection, id: RunId) -> Result<Attempt, StoreError> {
    let row = sqlx::query!(
        "select attempt, run.node_id, provider, offer, plan, measured_peak from run join node using (node_id)
         where run_id = $1",
        id.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(Attempt {
        id,
        number: row.attempt,
        node: NodeId::new(row.node_id),
        provider: row.provider,
        offer: row.offer,
        plan: json("run.plan", row.plan)?,
        measured_peak: row.measured_peak,
    })
}

/// Returns the metrics of the last step and of the last validation.
async fn metrics(db: &mut PgConnection, job: &Job, trained_tokens: u64) -> Result<Metrics, StoreError> {
    let row = sqlx::query!(
        r#"select
             (select data from job_event where job_id = $1 and type = 'metrics' and data ? 'train_loss'
                 order by job_event_id desc limit 1) as step,
             (select data from job_event where job_id = $1 and type = 'metrics' and data ? 'valid_loss'
                 order by job_event_id desc limit 1) as validation"#,
        job.job_id.uuid(),
    )
    .fetch_one(db)
    .await?;
    let number = |data: &Option<serde_json::Value>, name: &str| data.as_ref().and_then(|data| data[name].as_f64());
    Ok(Metrics {
        steps: job.steps_done,
        trained_tokens,
        train_loss: number(&row.step, "train_loss"),
        train_mean_token_accuracy: number(&row.step, "train_mean_token_accuracy"),
        valid_loss: number(&row.validation, "valid_loss"),
        valid_mean_token_accuracy: number(&row.validation, "valid_mean_token_accuracy"),
    })
}
