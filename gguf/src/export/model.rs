//! A model as a GGUF file.

use std::path::Path;

use attune_domain::architecture::Architecture;
use attune_domain::weights::expected;

use crate::export::error::{ExportError, read};
use crate::export::file::write;
use crate::export::interface::{ModelSource, Weights};
use crate::export::kind::Kind;
use crate::export::metadata::Metadata;
use crate::export::mixture::Mixture;
use crate::export::names::{arch, is_permuted};
use crate::export::tensors::{Planned, Settings, Values};
use crate::export::{hyperparameters, vocabulary};
use crate::tensors::gguf_name;

/// The value of `general.license` for a licence that is not known.
const UNKNOWN: &str = "unknown";

/// Writes a model as the new file `out`.
///
/// # Errors
/// [`ExportError`]: GGUF cannot express the model, a tensor cannot be read, or the disk is full.
pub fn write_model<W: Weights>(source: &ModelSource<'_>, out: &Path, weights: &mut W) -> Result<(), ExportError> {
    let config = read(&source.folder.join("config.json"))?;
    let architecture = Architecture::from_config_json(&config)?;
    let arch = arch(&architecture);
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", arch);
    metadata.text("general.type", "model");
    metadata.text("general.name", source.name);
    metadata.text("general.license", source.license.unwrap_or(UNKNOWN));
    metadata.number("general.file_type", source.matrices.file_type());
    metadata.number("general.quantization_version", 2);
    set_importance(&mut metadata, source);
    let factors = hyperparameters::set(&mut metadata, arch, &architecture)?;
    vocabulary::set(&mut metadata, source, architecture.vocab_size)?;
    let mixture = Mixture {
        matrices: source.matrices,
        layers: architecture.num_hidden_layers,
        is_tied: architecture.tie_word_embeddings,
    };
    let mut tensors = Vec::new();
    for (name, shape) in expected(&architecture) {
        let gguf = gguf_name(&name).ok_or_else(|| ExportError::Unsupported(format!("tensor '{name}' has no name")))?;
        let kind = mixture.kind(&gguf, &shape);
        let head = is_permuted(&architecture, &name).then_some(architecture.head_dim);
        tensors.push(Planned { gguf, shape, kind, values: Values::Read { name, head } });
    }
    if let Some(factors) = factors {
        let shape = vec![factors.len() as u64];
        tensors.push(Planned {
            gguf: "rope_freqs.weight".into(),
            shape,
            kind: Kind::F32,
            values: Values::Given(factors),
        });
    }
    let settings = Settings { importance: source.importance, threads: source.threads };
    write(out, &metadata, (&tensors, settings), weights)
}

/// Sets the keys about the importance matrix. Source: `LLM_KV_QUANTIZE_IMATRIX_…` in llama.cpp's
/// `tools/quantize/quantize.cpp`, whose key of a file is left out: the matrix has none.
fn set_importance(metadata: &mut Metadata, source: &ModelSource<'_>) {
    let Some(importance) = source.importance else { return };
    metadata.text("quantize.imatrix.dataset", &importance.dataset);
    metadata.number("quantize.imatrix.entries_count", u32::try_from(importance.columns.len()).unwrap_or(u32::MAX));
    metadata.number("quantize.imatrix.chunks_count", importance.chunks);
}
