//! Exports of an adapter: its forms, the options of each, and the programs that load them.
//!
//! An export is a task of a node, as it needs tensors. It is described by an
//! [`ExportSpec`](crate::export::ExportSpec), which is stored with the export's row and sent to the node.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::{
    architecture::{Architecture, RopeScaling},
    bad_field::BadField,
    bytes::Bytes,
    spec::AdapterSpec,
};

/// The programs that load an export.
pub mod loads_with;

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ExportFormat {
    /// The adapter alone, as a folder in PEFT's format.
    Peft,
    /// The base model with the adapter merged into it, as a Hugging Face folder.
    Merged,
    /// The merged model as one GGUF file, with an Ollama Modelfile.
    Gguf,
    /// The adapter alone as a GGUF file, for llama.cpp.
    GgufAdapter,
}

/// The number type of an export's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ExportDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
    /// GGUF's 8-bit blocks of 32 weights with a 16-bit scale.
    #[serde(rename = "q8_0")]
    #[strum(serialize = "q8_0")]
    Q8Zero,
    /// GGUF's mixture of 4-bit and 6-bit blocks of 256 weights that llama.cpp calls `Q4_K_M`.
    #[serde(rename = "q4_k_m")]
    #[strum(serialize = "q4_k_m")]
    Q4KMedium,
}

/// The base weights that an adapter is merged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BaseWeights {
    /// The weights that the adapter was trained over: quantized, and dequantized again. PEFT's `merge_and_unload` on a
    /// quantized model uses the same ones.
    Dequantized,
    /// The weights of the base model before it was quantized for training.
    Original,
}

/// The name of the file with the digests of an export's files.
pub const MANIFEST_FILE: &str = "export_manifest.json";

/// The default of [`ExportSpec::shard_bytes`].
const SHARD_BYTES: Bytes = Bytes(2 << 30);

/// The least size of a shard.
const LEAST_SHARD_BYTES: u64 = 1 << 20;

/// The maximum size of one file of an export: a node uploads each file in one request, and S3 accepts 5 GiB in one.
/// Source: "Amazon S3 multipart upload limits" in the user guide of S3.
pub const MOST_FILE_BYTES: u64 = 5 << 30;

/// The number of bytes that a GGUF file has in addition to its weights, at most: metadata and tokenizer.
const GGUF_HEADER_BYTES: u64 = 64 << 20;

/// The number of weights in a block of GGUF's types Q4_K and Q6_K, and the bytes of both. Source: `block_q4_K` and
/// `block_q6_K` in ggml's `ggml-common.h`.
const Q4_K_BLOCK: u64 = 256;
const Q4_K_BYTES: u64 = 144;
const Q6_K_BYTES: u64 = 210;

/// The maximum number of tokens in a chunk of the text that an importance matrix is computed from: that of llama.cpp's
/// `llama-imatrix`.
pub const IMATRIX_CHUNK_TOKENS: u64 = 512;

/// The maximum number of chunks that an importance matrix is computed from.
pub const IMATRIX_CHUNKS: u64 = 64;

/// The fields of a request for an export, before they are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportRequest {
    /// The form.
    pub format: String,
    /// The number type of the weights.
    pub dtype: Option<String>,
    /// The base weights that the adapter is merged into.
    pub base_weights: Option<String>,
    /// The maximum size of a file of weights.
    pub shard_bytes: Option<u64>,
    /// `true`: the quantization weights errors with an importance matrix.
    pub imatrix: Option<bool>,
    /// The ID of the file that the importance matrix is computed from.
    pub imatrix_file: Option<String>,
}

/// A checked request for an export, with all defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportSpec {
    /// The form.
    pub format: ExportFormat,
    /// The number type of the weights.
    pub dtype: ExportDtype,
    /// The base weights that the adapter is merged into.
    pub base_weights: BaseWeights,
    /// The maximum size of a file of merged weights. A tensor is never split, so that one may be larger.
    pub shard_bytes: Bytes,
    /// `true`: the quantization weights errors with an importance matrix, from the export's calibration file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imatrix: bool,
}

impl ExportSpec {
    /// Checks the request for an adapter over a base of this architecture, and fills in the defaults.
    ///
    /// # Errors
    /// The first [`BadField`]: a value that is not known, or a form that this adapter or its base cannot have.
    pub fn check(asked: &ExportRequest, architecture: &Architecture, adapter: &AdapterSpec) -> Result<Self, BadField> {
        let format: ExportFormat = read("format", &asked.format, ExportFormat::VARIANTS)?;
        let is_merged = matches!(format, ExportFormat::Merged | ExportFormat::Gguf);
        let dtype = match asked.dtype.as_deref() {
            None => format.default_dtype(),
            Some(given) => {
                let names: Vec<&'static str> = format.dtypes().iter().map(|dtype| (*dtype).into()).collect();
                read("dtype", given, &names)?
            }
        };
        let base_weights = match asked.base_weights.as_deref() {
            None => BaseWeights::Dequantized,
            Some(given) if !is_merged => {
                return Err(bad("base_weights", given, "left out for a format without the base"));
            }
            Some(given) => read("base_weights", given, BaseWeights::VARIANTS)?,
        };
        let shard_bytes = match asked.shard_bytes {
            None => SHARD_BYTES,
            Some(given) if format != ExportFormat::Merged => {
                return Err(bad("shard_bytes", given, "left out for a format other than merged"));
            }
            Some(given) if (LEAST_SHARD_BYTES..=MOST_FILE_BYTES).contains(&given) => Bytes(given),
            Some(given) => {
                return Err(bad("shard_bytes", given, format!("{LEAST_SHARD_BYTES} to {MOST_FILE_BYTES}")));
            }
        };
        let spec = Self { format, dtype, base_weights, shard_bytes, imatrix: imatrix(asked, dtype)? };
        spec.check_gguf(architecture, adapter)?;
        Ok(spec)
    }

    /// Checks that GGUF can express the model and the adapter.
    fn check_gguf(self, architecture: &Architecture, adapter: &AdapterSpec) -> Result<(), BadField> {
        if !matches!(self.format, ExportFormat::Gguf | ExportFormat::GgufAdapter) {
            return Ok(());
        }
        let given: &'static str = self.format.into();
        if architecture.layers.sliding_window.is_some() {
            let why = "peft or merged: llama.cpp has no sliding window for models of this architecture";
            return Err(bad("format", given, why));
        }
        if matches!(architecture.rope_scaling, Some(RopeScaling::Dynamic { .. })) {
            return Err(bad("format", given, "peft or merged: GGUF has no dynamic scaling of rotary embeddings"));
        }
        if self.format == ExportFormat::GgufAdapter && adapter.use_dora {
            return Err(bad("format", given, "peft, merged or gguf: llama.cpp runs no DoRA adapters"));
        }
        let bytes = self.dtype.bytes_of(architecture).saturating_add(GGUF_HEADER_BYTES);
        if self.format == ExportFormat::Gguf && bytes > MOST_FILE_BYTES {
            let why = format!(
                "merged: the GGUF file would have about {}, and a file has at most {}",
                Bytes(bytes),
                Bytes(MOST_FILE_BYTES)
            );
            return Err(bad("format", given, why));
        }
        Ok(())
    }
}

impl ExportFormat {
    /// Returns the number types that the form's weights may have.
    const fn dtypes(self) -> &'static [ExportDtype] {
        use ExportDtype::{Bf16, F16, F32, Q4KMedium, Q8Zero};
        match self {
            Self::Peft | Self::GgufAdapter => &[F32],
            Self::Merged => &[F32, F16, Bf16],
            Self::Gguf => &[F32, F16, Q8Zero, Q4KMedium],
        }
    }

    const fn default_dtype(self) -> ExportDtype {
        match self {
            Self::Peft | Self::GgufAdapter => ExportDtype::F32,
            Self::Merged => ExportDtype::Bf16,
            Self::Gguf => ExportDtype::F16,
        }
    }
}

impl ExportDtype {
    /// Returns the bytes of all weights, at most.
    fn bytes_of(self, architecture: &Architecture) -> u64 {
        let (projections, embeddings) = (architecture.projection_weights(), architecture.embedding_weights());
        let weights = projections.saturating_add(embeddings);
        match self {
            Self::F32 => weights.saturating_mul(4),
            Self::F16 | Self::Bf16 => weights.saturating_mul(2),
            // Blocks of 32 bytes and a scale of 2.
            Self::Q8Zero => weights.saturating_mul(34) / 32,
            Self::Q4KMedium if !has_rows_of(architecture, Q4_K_BLOCK) => weights.saturating_mul(34) / 32,
            Self::Q4KMedium => {
                let of =
                    |module: &str| architecture.projection(module).map_or(0, |(outs, ins)| outs.saturating_mul(ins));
                // Half of the layers, and what its rounding adds.
                let layers = architecture.num_hidden_layers / 2 + 2;
                let precise = of("v_proj").saturating_add(of("down_proj")).saturating_mul(layers).min(projections);
                let wide = precise.saturating_add(embeddings).saturating_mul(Q6_K_BYTES) / Q4_K_BLOCK;
                wide.saturating_add((projections - precise).saturating_mul(Q4_K_BYTES) / Q4_K_BLOCK)
            }
        }
    }
}

/// Returns whether the rows of all matrices are multiples of this number of weights.
const fn has_rows_of(architecture: &Architecture, block: u64) -> bool {
    let attended = architecture.num_attention_heads.saturating_mul(architecture.head_dim);
    architecture.hidden_size.is_multiple_of(block)
        && architecture.intermediate_size.is_multiple_of(block)
        && attended.is_multiple_of(block)
}

/// The state of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ExportState {
    /// Waiting for a machine.
    Queued,
    /// Being written on a node.
    Running,
    /// Complete; its files can be downloaded.
    Succeeded,
    /// Ended without files.
    Failed,
}

/// The difference between the exported model and the served adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The number of tokens that both were evaluated on.
    pub tokens: u64,
    /// The largest absolute difference of a logit.
    pub max_logit_difference: f64,
    /// The mean Kullback-Leibler divergence of the exported model's next-token distribution from that of the served
    /// adapter, in nats.
    pub mean_kl_divergence: f64,
}

/// Returns whether the request is one with an importance matrix, which only some number types can use.
fn imatrix(asked: &ExportRequest, dtype: ExportDtype) -> Result<bool, BadField> {
    if let (Some(false), Some(file)) = (asked.imatrix, &asked.imatrix_file) {
        return Err(bad("imatrix_file", file, "left out with imatrix false"));
    }
    let is_wanted = asked.imatrix == Some(true) || asked.imatrix_file.is_some();
    if !is_wanted || dtype == ExportDtype::Q4KMedium {
        return Ok(is_wanted);
    }
    let dtype: &str = dtype.into();
    let why = format!("false or left out for {dtype}, which has no scales to choose; only q4_k_m of gguf has");
    Err(match &asked.imatrix_file {
        Some(file) => bad("imatrix_file", file, why),
        None => bad("imatrix", true, why),
    })
}

fn read<T: std::str::FromStr>(param: &'static str, given: &str, names: &[&'static str]) -> Result<T, BadField> {
    let known = names.contains(&given).then(|| given.parse().ok()).flatten();
    known.ok_or_else(|| {
        let shown: String = given.chars().take(80).collect();
        bad(param, format!("'{shown}'"), names.join(", "))
    })
}

fn bad(param: &'static str, given: impl ToString, allowed: impl Into<String>) -> BadField {
    BadField { param, given: given.to_string(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 512, "tie_word_embeddings": true}"#;

    fn checked(format: &str, dtype: Option<&str>) -> Result<ExportSpec, String> {
        let asked = ExportRequest { format: format.into(), dtype: dtype.map(Into::into), ..ExportRequest::default() };
        with(TINY, &AdapterSpec::lora(8, 16.0, &["q_proj"]), &asked)
    }

    fn with(config: &str, adapter: &AdapterSpec, asked: &ExportRequest) -> Result<ExportSpec, String> {
        let architecture = Architecture::from_config_json(config.as_bytes()).unwrap();
        ExportSpec::check(asked, &architecture, adapter).map_err(|refused| refused.to_string())
    }

    #[test]
    fn a_request_has_defaults_and_its_stored_form_is_read_again() {
        let spec = checked("merged", None).unwrap();
        let stored = serde_json::json!({"format": "merged", "dtype": "bf16", "base_weights": "dequantized",
            "shard_bytes": 2_147_483_648_u64});
        assert_eq!(serde_json::to_value(spec).unwrap(), stored);
        assert_eq!(serde_json::from_value::<ExportSpec>(stored).unwrap(), spec);
        assert_eq!(checked("gguf", None).unwrap().dtype, ExportDtype::F16);
        assert_eq!(checked("gguf", Some("q8_0")).unwrap().dtype, ExportDtype::Q8Zero);
        assert_eq!(checked("gguf", Some("q4_k_m")).unwrap().dtype, ExportDtype::Q4KMedium);
        assert_eq!(checked("gguf_adapter", None).unwrap().dtype, ExportDtype::F32);
    }

    #[test]
    fn an_importance_matrix_is_for_types_with_scales_to_choose() {
        let asked = |dtype: &str, imatrix, file: Option<&str>| {
            let (dtype, imatrix_file) = (Some(dtype.to_owned()), file.map(str::to_owned));
            let asked =
                ExportRequest { format: "gguf".into(), dtype, imatrix, imatrix_file, ..ExportRequest::default() };
            with(TINY, &AdapterSpec::lora(8, 16.0, &["q_proj"]), &asked)
        };
        let spec = asked("q4_k_m", Some(true), None).unwrap();
        assert!(spec.imatrix && asked("q4_k_m", None, Some("file-1")).unwrap().imatrix);
        assert!(!asked("q4_k_m", Some(false), None).unwrap().imatrix);
        assert_eq!(serde_json::to_value(spec).unwrap()["imatrix"], true);
        let refused = asked("q8_0", Some(true), None).unwrap_err();
        assert!(refused.starts_with("imatrix: true") && refused.contains("q8_0, which has no scales"), "{refused}");
        assert!(asked("f16", None, Some("file-1")).unwrap_err().starts_with("imatrix_file: file-1"));
        assert!(asked("q4_k_m", Some(false), Some("file-1")).unwrap_err().starts_with("imatrix_file: file-1"));
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let refused = checked("onnx", None).unwrap_err();
        assert_eq!(refused, "format: 'onnx' is not allowed; it must be peft, merged, gguf, gguf_adapter");
        let refused = checked("gguf", Some("q4_0")).unwrap_err();
        assert!(refused.ends_with("it must be f32, f16, q8_0, q4_k_m"), "{refused}");
        assert!(checked("merged", Some("q8_0")).unwrap_err().contains("it must be f32, f16, bf16"));
        let small = ExportRequest { format: "merged".into(), shard_bytes: Some(9), ..ExportRequest::default() };
        assert!(
            with(TINY, &AdapterSpec::lora(8, 16.0, &["q_proj"]), &small).unwrap_err().starts_with("shard_bytes: 9")
        );
        let base = ExportRequest { format: "peft".into(), base_weights: Some("original".into()), ..small };
        let refused = with(TINY, &AdapterSpec::lora(8, 16.0, &["q_proj"]), &base).unwrap_err();
        assert!(refused.starts_with("base_weights: original"), "{refused}");
    }

    #[test]
    fn a_form_that_the_base_or_the_adapter_cannot_have_is_refused() {
        let asked = |format: &str| ExportRequest { format: format.into(), ..ExportRequest::default() };
        let plain = AdapterSpec::lora(8, 16.0, &["q_proj"]);
        let windowed = TINY.replace("\"llama\"", "\"mistral\", \"sliding_window\": 64");
        assert!(with(&windowed, &plain, &asked("gguf")).unwrap_err().contains("sliding window"));
        assert!(with(&windowed, &plain, &asked("merged")).is_ok());
        let dora = AdapterSpec { use_dora: true, ..plain.clone() };
        assert!(with(TINY, &dora, &asked("gguf_adapter")).unwrap_err().contains("DoRA"));
        assert!(with(TINY, &dora, &asked("gguf")).is_ok());
        let large = TINY.replace("\"vocab_size\": 256", "\"vocab_size\": 262144").replace("64,", "8192,");
        let large = large.replace("attention_heads\": 4", "attention_heads\": 64");
        assert!(with(&large, &plain, &asked("merged")).is_ok());
        let whole = ExportRequest { dtype: Some("f32".into()), ..asked("gguf") };
        assert!(with(&large, &plain, &whole).unwrap_err().contains("a file has at most 5.0 GiB"));
        // Llama 3.1 8B, which has about 4.7 GiB in this type.
        let eight = TINY.replace("64,", "4096,").replace("128,", "14336,").replace("layers\": 2", "layers\": 32");
        let eight = eight.replace("heads\": 4", "heads\": 32").replace("heads\": 2", "heads\": 8");
        let eight = eight.replace("\"vocab_size\": 256", "\"vocab_size\": 128256").replace("true}", "false}");
        let four = ExportRequest { dtype: Some("q4_k_m".into()), ..asked("gguf") };
        assert!(with(&eight, &plain, &four).is_ok());
        let eight_bits = ExportRequest { dtype: Some("q8_0".into()), ..asked("gguf") };
        assert!(with(&eight, &plain, &eight_bits).is_err());
    }
}
