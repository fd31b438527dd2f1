//! The preparation of a job from a request: every field is checked, every default filled in, every file and model
//! found. The result becomes a job or an estimate.

use attune_domain::{id::FileId, job::Priority, spec::TrainSpec};
use attune_process::telemetry;
use attune_store::{
    adapters::base_model::BaseModel,
    error::StoreError,
    files::file,
    jobs::job,
    tenancy::{api_key::Holder, project_queue},
};
use chrono::Utc;
use sqlx::PgConnection;

use crate::{
    app::App,
    error::ApiError,
    files::preview::no_dataset,
    http::path_id::truncated,
    jobs::starting_point,
    wire::{
        job::NewJob,
        money::{ComputeFields, micro_usd},
    },
};

/// A prepared job.
#[derive(Debug)]
pub struct Made {
    /// The job's row.
    pub row: job::NewJob,
    /// The base model.
    pub base: BaseModel,
    /// The training file, locked until the transaction ends.
    pub training: file::File,
    /// The validation file, locked until the transaction ends.
    pub validation: Option<file::File>,
}

/// Prepares a job from a request.
///
/// # Errors
/// [`ApiError::Invalid`] names the first invalid field. [`ApiError::ModelNotFound`], [`ApiError::Internal`].
pub async fn make(app: &App, tx: &mut PgConnection, holder: &Holder, new: &NewJob) -> Result<Made, ApiError> {
    let mut asked = new.requested()?;
    let beginning = starting_point::find(tx, holder.project_id, new).await?;
    if let Some(before) = &beginning.adapter {
        asked = asked.continuing(&before.spec, before.quantization)?;
    }
    let base = beginning.base;
    let training = dataset(tx, holder, "training_file", &new.training_file).await?;
    let validation = match &new.validation_file {
        Some(id) => Some(dataset(tx, holder, "validation_file", id).await?),
        None => None,
    };
    let rows = training.dataset.as_ref().map_or(0, |dataset| dataset.rows);
    let spec = TrainSpec::check(&asked, rows, base.architecture.max_position_embeddings)?;
    check_validations(&spec, validation.is_some())?;
    right_rows(&spec, "training_file", &training)?;
    if let Some(validation) = &validation {
        right_rows(&spec, "validation_file", validation)?;
    }
    let compute = new.compute.clone().unwrap_or_default();
    let limits = compute.limits(Utc::now().timestamp())?;
    let ComputeFields { max_price_usd, priority, preemptible, .. } = compute;
    let row = job::NewJob {
        project_id: holder.project_id,
        base_model_id: base.base_model_id,
        training_file_id: training.file_id,
        validation_file_id: validation.as_ref().map(|file| file.file_id),
        continue_from: beginning.adapter.map(|adapter| adapter.adapter_version_id),
        suffix: new.suffix(),
        metadata: serde_json::to_value(new.metadata.clone().unwrap_or_default()).map_err(ApiError::internal)?,
        spec,
        api_key_id: holder.api_key_id,
        micro_usd_per_million_tokens: app.inference.prices.micro_usd_per_million_trained_tokens(),
        max_micro_usd: max_price_usd.map(micro_usd),
        priority: allowed_priority(tx, holder, priority).await?,
        preemptible: preemptible.unwrap_or(false),
        limits,
        traceparent: telemetry::traceparent().and_then(|name| name.parse().ok()),
    };
    Ok(Made { row, base, training, validation })
}

/// Returns the job's priority: the requested one, or the default, which the project's maximum lowers.
async fn allowed_priority(
    tx: &mut PgConnection,
    holder: &Holder,
    asked: Option<Priority>,
) -> Result<Priority, ApiError> {
    let most = project_queue::get(tx, holder.project_id).await?.max_priority;
    let Some(asked) = asked else { return Ok(Priority::default().min(most)) };
    if asked <= most {
        return Ok(asked);
    }
    let param = "compute.priority";
    Err(ApiError::invalid(
        param,
        format!(
            "Invalid '{param}': '{asked}' is above this project's max_priority, '{most}'. Use '{most}' or a lower one, \
             or have an administrator of the installation raise it."
        ),
    ))
}

/// Checks that a job with validations has a validation file.
fn check_validations(spec: &TrainSpec, there_are_rows: bool) -> Result<(), ApiError> {
    let param = if spec.trainer.early_stopping_patience > 0 {
        "trainer.early_stopping_patience"
    } else {
        "trainer.eval_every_steps"
    };
    if there_are_rows || spec.trainer.eval_every_steps == 0 {
        return Ok(());
    }
    Err(ApiError::invalid(
        param,
        format!("'{param}' requires a validation file. Set 'validation_file', or omit '{param}'."),
    ))
}

/// Returns the file that a field of the request names, locked until the transaction ends.
async fn dataset(
    tx: &mut PgConnection,
    holder: &Holder,
    field: &'static str,
    text: &str,
) -> Result<file::File, ApiError> {
    let missing = || ApiError::Invalid {
        param: Some(field.into()),
        code: "file_not_found",
        message: format!("Invalid '{field}': there is no file '{}'.", truncated(text)),
    };
    let id: FileId = text.parse().map_err(|_| missing())?;
    let file = match file::lock_for_job(tx, holder.project_id, id).await {
        Err(StoreError::NotFound(_)) => return Err(missing()),
        found => found?,
    };
    if file.dataset.is_none() { Err(no_dataset(field, &file)) } else { Ok(file) }
}

/// Refuses a file whose rows the method cannot train on.
fn right_rows(spec: &TrainSpec, field: &'static str, file: &file::File) -> Result<(), ApiError> {
    let Some(dataset) = &file.dataset else { return Err(no_dataset(field, file)) };
    spec.method.takes(dataset.format).map_err(|wrong| ApiError::invalid(field, format!("Invalid '{field}': {wrong}.")))
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::{Requested, request::TrainerFields};

    use super::*;

    #[test]
    fn validations_on_the_way_need_a_validation_file() {
        let spec = |patience| {
            let trainer = TrainerFields {
                eval_every_steps: Some(5),
                early_stopping_patience: patience,
                ..TrainerFields::default()
            };
            TrainSpec::check(&Requested { trainer, ..Requested::default() }, 360, 8192).unwrap()
        };
        for (patience, param) in [(None, "trainer.eval_every_steps"), (Some(2), "trainer.early_stopping_patience")] {
            let error = check_validations(&spec(patience), false).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains("validation_file"), "{}", error.message);
            assert!(check_validations(&spec(patience), true).is_ok());
        }
        let at_the_end = TrainSpec::check(&Requested::default(), 360, 8192).unwrap();
        assert!(check_validations(&at_the_end, false).is_ok());
    }
}
