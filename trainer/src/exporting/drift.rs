//! The comparison of an exported model with the adapter as it is served in `f32`: the logits of the prompts of the
//! publish gate, first over the base in its quantization with the adapter, then of the exported model alone. One model
//! is in memory at a time.

use std::path::Path;

use attune_domain::{export::Drift, placement::Placement, run::task::ExportTask, spec::Quantization};
use attune_model::{adapter::LoraAdapter, decoder::Decoder, merge::logit_drift, served::Hold};
use attune_text::model::TextModel;

use super::inputs::ExportInputs;
use crate::{error::TrainerError, publishing::publish::prompts};

/// Measures the drift of the model in `exported`, a Hugging Face folder.
pub(super) fn measure(
    task: &ExportTask,
    (inputs, text): (&ExportInputs, &TextModel),
    exported: &Path,
) -> Result<Drift, TrainerError> {
    let prompts = prompts(text)?;
    let placement = Placement::default();
    let served = Decoder::load_served(&inputs.base, task.quantization, placement, &inputs.packed_base, Hold::Packed)?;
    let adapter = LoraAdapter::load(&inputs.adapter, served.architecture())?;
    let wanted = served.served_logits(&prompts, Some(&adapter))?; // [t, v]
    drop((served, adapter));
    let found = Decoder::load(exported, Quantization::None, placement)?.served_logits(&prompts, None)?; // [t, v]
    let drift = logit_drift(&wanted, &found)?;
    if !drift.max_difference.is_finite() {
        return Err(TrainerError::Export("its logits are NaN or infinite".into()));
    }
    Ok(Drift {
        tokens: prompts.iter().map(|ids| ids.len() as u64).sum(),
        max_logit_difference: drift.max_difference,
        mean_kl_divergence: drift.mean_kl,
    })
}
