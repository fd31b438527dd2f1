//! The adapter of a new export: a version or a checkpoint of the project.

use attune_domain::{
    dataset::RowFormat,
    export::{ExportRequest, ExportSpec},
    id::{BaseModelId, FileId, JobId, ProjectId},
    spec::AdapterSpec,
};
use attune_store::{
    adapters::{adapter, base_model},
    error::StoreError,
    exports::export::NewExport,
    files::file,
    jobs::{checkpoint, job},
};
use sqlx::PgConnection;

use crate::{error::ApiError, http::path_id::truncated};

/// Returns the row of an export of the project's version or checkpoint with this name.
///
/// # Errors
/// [`ApiError::NotFound`]: no such version or checkpoint, or its base model was deleted. [`ApiError::Invalid`]: a form
/// that it cannot have. [`ApiError::Internal`].
pub async fn new(
    tx: &mut PgConnection,
    project: ProjectId,
    name: String,
    asked: &ExportRequest,
) -> Result<NewExport, ApiError> {
    match adapter::lock(tx, project, &name).await {
        Ok(version) => {
            let spec = checked(tx, version.base_model_id, &version.spec, asked).await?;
            let imatrix_file = calibration(tx, (project, version.job_id), spec, asked).await?;
            Ok(NewExport {
                model_name: version.model_name,
                base_model_id: version.base_model_id,
                quantization: version.quantization,
                adapter: version.spec,
                adapter_files: version.files,
                manifest: version.manifest,
                spec,
                imatrix_file,
            })
        }
        Err(StoreError::NotFound(_)) => of_checkpoint(tx, project, name, asked).await,
        Err(error) => Err(error.into()),
    }
}

async fn of_checkpoint(
    tx: &mut PgConnection,
    project: ProjectId,
    name: String,
    asked: &ExportRequest,
) -> Result<NewExport, ApiError> {
    let found = checkpoint::by_model_name(tx, project, &name).await?;
    let named = found.ok_or(ApiError::NotFound { noun: "adapter", name })?;
    let job = named.checkpoint.job_id;
    let adapter = job::get(tx, project, job).await?.spec.adapter;
    let spec = checked(tx, named.base_model_id, &adapter, asked).await?;
    let imatrix_file = calibration(tx, (project, Some(job)), spec, asked).await?;
    Ok(NewExport {
        adapter_files: named.adapter_files().cloned().collect(),
        model_name: named.model_name,
        base_model_id: named.base_model_id,
        quantization: named.quantization,
        adapter,
        manifest: None,
        spec,
        imatrix_file,
    })
}

async fn checked(
    tx: &mut PgConnection,
    base: BaseModelId,
    adapter: &AdapterSpec,
    asked: &ExportRequest,
) -> Result<ExportSpec, ApiError> {
    let base = base_model::get(tx, base).await?;
    Ok(ExportSpec::check(asked, &base.architecture, adapter)?)
}

/// Returns the file that the importance matrix is computed from, if the export has one: the requested one, or the
/// validation file of the adapter's job, or its training file.
async fn calibration(
    tx: &mut PgConnection,
    (project, job): (ProjectId, Option<JobId>),
    spec: ExportSpec,
    asked: &ExportRequest,
) -> Result<Option<FileId>, ApiError> {
    if !spec.imatrix {
        return Ok(None);
    }
    let (field, id) = match (&asked.imatrix_file, job) {
        (Some(text), _) => ("imatrix_file", text.parse::<FileId>().map_err(|_| missing("imatrix_file", text))?),
        (None, Some(job)) => {
            let job = job::get(tx, project, job).await?;
            ("imatrix", job.validation_file_id.unwrap_or(job.training_file_id))
        }
        (None, None) => {
            let message = "The adapter was imported, so its data is not known. Set 'imatrix_file' to a dataset.";
            return Err(ApiError::invalid("imatrix", message));
        }
    };
    let file = match file::lock_for_job(tx, project, id).await {
        Err(StoreError::NotFound(_)) => return Err(missing(field, &id.to_string())),
        found => found?,
    };
    match file.dataset.map(|dataset| dataset.format) {
        Some(RowFormat::Chat | RowFormat::Completion | RowFormat::Text) => Ok(Some(id)),
        Some(RowFormat::Preference) | None => {
            let message = format!("Invalid '{field}': '{id}' is not a dataset of chats, completions or texts.");
            Err(ApiError::invalid(field, message))
        }
    }
}

fn missing(field: &'static str, id: &str) -> ApiError {
    let message = format!(
        "Invalid '{field}': there is no file '{}'. Set 'imatrix_file' to a dataset of this project.",
        truncated(id)
    );
    ApiError::Invalid { param: Some(field.into()), code: "file_not_found", message }
}
