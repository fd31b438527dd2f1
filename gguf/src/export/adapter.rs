//! An adapter as a GGUF file.

use std::path::Path;

use attune_domain::weights::projection_path;

use crate::export::error::ExportError;
use crate::export::file::write;
use crate::export::interface::{AdapterSource, Matrices, Weights};
use crate::export::kind::Kind;
use crate::export::metadata::Metadata;
use crate::export::names::{arch, is_permuted};
use crate::export::tensors::{Planned, Settings, Values};
use crate::tensors::gguf_name;

/// Writes an adapter as the new file `out`.
///
/// llama.cpp scales a correction by `alpha / rank`. The scale of an rsLoRA is `alpha / √rank`, so its alpha is
/// multiplied by `√rank`.
///
/// # Errors
/// [`ExportError`]: the adapter is a DoRA, a factor cannot be read, or the disk is full.
pub fn write_adapter<W: Weights>(source: &AdapterSource<'_>, out: &Path, weights: &mut W) -> Result<(), ExportError> {
    let AdapterSource { architecture, spec, name } = *source;
    if spec.use_dora {
        return Err(ExportError::Unsupported("GGUF has no form for DoRA's magnitudes".into()));
    }
    let rank = f64::from(spec.rank);
    let alpha = spec.lora_alpha * if spec.use_rslora { rank.sqrt() } else { 1.0 };
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", arch(architecture));
    metadata.text("general.type", "adapter");
    metadata.text("general.name", name);
    metadata.number("general.file_type", Matrices::F32.file_type());
    metadata.text("adapter.type", "lora");
    metadata.real("adapter.lora.alpha", alpha as f32);
    let mut tensors = Vec::new();
    for layer in 0..architecture.num_hidden_layers {
        for module in &spec.target_modules {
            let unknown = || ExportError::Unsupported(format!("'{module}' is not a projection of the base"));
            let (outs, ins) = architecture.projection(module).ok_or_else(unknown)?;
            let path = projection_path(layer, module);
            let gguf = gguf_name(&format!("{path}.weight")).ok_or_else(unknown)?;
            let head = is_permuted(architecture, &format!("{path}.weight")).then_some(architecture.head_dim);
            let rank = u64::from(spec.rank);
            for (suffix, factor, shape, head) in
                [("lora_a", "lora_A", vec![rank, ins], None), ("lora_b", "lora_B", vec![outs, rank], head)]
            {
                let values = Values::Read { name: format!("{path}.{factor}"), head };
                tensors.push(Planned { gguf: format!("{gguf}.{suffix}"), shape, kind: Kind::F32, values });
            }
        }
    }
    // Floats are encoded faster than they are read.
    let settings = Settings { importance: None, threads: 1 };
    write(out, &metadata, (&tensors, settings), weights)
}
