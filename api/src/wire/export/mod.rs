//! Exports in requests and responses.

use attune_domain::export::{Drift, ExportFormat, ExportRequest, ExportState, loads_with};
use attune_store::exports::export::{Export, ExportError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::wire::adapter::FolderFile;

/// The request body for creating an export.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewExport {
    /// The form: `peft` (the adapter's folder), `merged` (the base model with the adapter merged into it, as a Hugging
    /// Face folder), `gguf` (the merged model as a GGUF file with an Ollama Modelfile) or `gguf_adapter` (the adapter
    /// alone as a GGUF file).
    #[schema(example = "merged")]
    pub format: String,
    /// The number type of the weights: `f32`, `f16` or `bf16` for `merged`, which defaults to `bf16`; `f32`, `f16` or
    /// `q8_0` for `gguf`, or `q4_k_m`, llama.cpp's mixture of 4-bit and 6-bit blocks; `gguf` defaults to `f16`.
    #[schema(example = "bf16")]
    pub dtype: Option<String>,
    /// The base weights that the adapter is merged into: `dequantized`, those that it was trained over, or `original`.
    /// Defaults to `dequantized`.
    #[schema(example = "dequantized")]
    pub base_weights: Option<String>,
    /// The maximum size of a file of merged weights in bytes, from 1 MiB to 5 GiB. Defaults to 2 GiB.
    pub shard_bytes: Option<u64>,
    /// True to weight the errors of quantized weights with an importance matrix: the mean squares of the inputs of each
    /// column of a matrix, over the validation file of the adapter's job, or else its training file. Only for
    /// `q4_k_m`. Defaults to false, or to true with `imatrix_file`.
    pub imatrix: Option<bool>,
    /// The ID of the dataset that the importance matrix is computed from instead. Required with `imatrix` for an
    /// adapter that was imported.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub imatrix_file: Option<String>,
}

impl From<NewExport> for ExportRequest {
    fn from(new: NewExport) -> Self {
        let NewExport { format, dtype, base_weights, shard_bytes, imatrix, imatrix_file } = new;
        Self { format, dtype, base_weights, shard_bytes, imatrix, imatrix_file }
    }
}

/// The reason why an export failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExportErrorView {
    /// A stable, machine-readable code.
    #[schema(example = "input_deleted")]
    pub code: String,
    /// A human-readable message.
    pub message: String,
}

impl From<ExportError> for ExportErrorView {
    fn from(ExportError { code, message }: ExportError) -> Self {
        Self { code, message }
    }
}

/// The difference between the exported model and the served adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct DriftView {
    /// The number of tokens that both were evaluated on.
    pub tokens: u64,
    /// The largest absolute difference of a logit.
    pub max_logit_difference: f64,
    /// The mean Kullback-Leibler divergence of the exported model's next-token distribution from that of the served
    /// adapter, in nats.
    pub mean_kl_divergence: f64,
}

impl From<Drift> for DriftView {
    fn from(Drift { tokens, max_logit_difference, mean_kl_divergence }: Drift) -> Self {
        Self { tokens, max_logit_difference, mean_kl_divergence }
    }
}

/// A program, and the statement that it loads the export or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LoadsWithView {
    /// The name of the program.
    #[schema(example = "vLLM")]
    pub program: String,
    /// True if the program loads the export.
    pub loads: bool,
    /// The options that the program needs, or the reason why it does not load the export.
    pub note: String,
}

/// An export of an adapter version or of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ExportView {
    /// The export's ID.
    #[schema(example = "export_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub id: String,
    /// The object type, always `adapter.export`.
    pub object: &'static str,
    /// The name of the exported model.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The name of the base model.
    pub base_model: String,
    /// The form.
    #[schema(example = "merged")]
    pub format: &'static str,
    /// The number type of the weights.
    #[schema(example = "bf16")]
    pub dtype: &'static str,
    /// The base weights that the adapter is merged into; `null` for a form without the base.
    #[schema(example = "dequantized")]
    pub base_weights: Option<&'static str>,
    /// The maximum size of a file of merged weights; `null` for other forms.
    pub shard_bytes: Option<u64>,
    /// True if the errors of quantized weights are weighted with an importance matrix.
    pub imatrix: bool,
    /// The ID of the file that the importance matrix is computed from.
    pub imatrix_file: Option<String>,
    /// The status: `queued`, `running`, `succeeded` or `failed`.
    #[schema(example = "succeeded")]
    pub status: &'static str,
    /// The reason why a queued export waits.
    pub waiting_reason: Option<String>,
    /// The fraction of the weights that is written, from 0 to 1.
    pub progress: f64,
    /// The files, once the status is `succeeded`.
    pub files: Vec<FolderFile>,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// The difference from the served adapter, for forms with the base and once it is measured.
    pub drift: Option<DriftView>,
    /// The programs that load the export, and those that do not.
    pub loads_with: Vec<LoadsWithView>,
    /// The error, if the status is `failed`.
    pub error: Option<ExportErrorView>,
    /// The creation time, in Unix seconds.
    pub created_at: i64,
    /// The time at which the last attempt started.
    pub started_at: Option<i64>,
    /// The time at which the export ended.
    pub finished_at: Option<i64>,
    /// The time at which the export and its files are deleted.
    pub expires_at: Option<i64>,
}

impl From<Export> for ExportView {
    fn from(export: Export) -> Self {
        let moment = |at: Option<chrono::DateTime<chrono::Utc>>| at.map(|at| at.timestamp());
        let spec = export.spec;
        let is_merged = matches!(spec.format, ExportFormat::Merged | ExportFormat::Gguf);
        let labels = loads_with::of(spec, &export.adapter, export.quantization).into_iter();
        Self {
            progress: progress(&export),
            id: export.export_id.to_string(),
            object: "adapter.export",
            model: export.model_name,
            base_model: export.base_model,
            format: spec.format.into(),
            dtype: spec.dtype.into(),
            base_weights: is_merged.then(|| spec.base_weights.into()),
            shard_bytes: (spec.format == ExportFormat::Merged).then_some(spec.shard_bytes.0),
            imatrix: spec.imatrix,
            imatrix_file: export.imatrix_file.map(|id| id.to_string()),
            status: export.state.into(),
            waiting_reason: export.waiting_reason,
            bytes: export.files.iter().map(|file| file.bytes.0).sum(),
            files: export.files.into_iter().map(FolderFile::from).collect(),
            drift: export.drift.map(DriftView::from),
            loads_with: labels
                .map(|label| LoadsWithView { program: label.program, loads: label.loads, note: label.note })
                .collect(),
            error: export.error.map(ExportErrorView::from),
            created_at: export.created_at.timestamp(),
            started_at: moment(export.started_at),
            finished_at: moment(export.ended_at),
            expires_at: moment(export.expires_at),
        }
    }
}

fn progress(export: &Export) -> f64 {
    match (export.state, export.total) {
        (ExportState::Succeeded, _) => 1.0,
        (_, Some(total)) => (export.done.0 as f64 / total.0.max(1) as f64).min(1.0),
        (_, None) => 0.0,
    }
}
