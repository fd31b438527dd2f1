//! Restoring the state that a run starts from or rolls back to: a new adapter, an earlier job's adapter, or a
//! checkpoint.

use std::path::Path;

use attune_domain::{architecture::Architecture, run::task::TrainTask, spec::AdapterSpec};
use attune_model::{adapter::LoraAdapter, decoder::Decoder, optim::optimizer::AdamW};

use crate::{
    checkpoints::{checkpoint, progress::Progress},
    error::TrainerError,
    optimizer::optimizer_options,
    session::Origin,
};

/// Restores the state of `origin`, deterministically. A rollback and a resume in another process both use this
/// function, so they give the same state. A checkpoint's best adapter is copied to `scratch`.
///
/// # Errors
/// [`TrainerError::Checkpoint`], [`TrainerError::ContinueFrom`], [`TrainerError::Model`], [`TrainerError::Node`].
pub fn restore(
    origin: &Origin,
    spec: &TrainTask,
    decoder: &Decoder,
    scratch: &Path,
) -> Result<(LoraAdapter, AdamW, Progress), TrainerError> {
    let adapter = match origin {
        Origin::Checkpoint(folder) => return checkpoint::load(folder, spec, decoder.architecture(), scratch),
        Origin::Start(Some(folder)) => continued(folder, spec, decoder.architecture())?,
        Origin::Start(None) => decoder.new_adapter(spec.train.adapter.clone(), spec.train.seed)?,
    };
    let optimizer = AdamW::new(&adapter, optimizer_options(&spec.train.trainer))?;
    Ok((adapter, optimizer, Progress::default()))
}

/// Loads an earlier job's adapter as this job's first state. The dropout is that of this job.
fn continued(folder: &Path, spec: &TrainTask, architecture: &Architecture) -> Result<LoraAdapter, TrainerError> {
    let refused = |why: String| TrainerError::ContinueFrom(why);
    let before = LoraAdapter::load(folder, architecture).map_err(|why| refused(why.to_string()))?;
    let had = AdapterSpec { lora_dropout: spec.train.adapter.lora_dropout, ..before.spec().clone() };
    if had != spec.train.adapter {
        let wanted = &spec.train.adapter;
        let shown =
            |spec: &AdapterSpec| serde_json::to_string(spec).map_err(|why| TrainerError::Internal(why.to_string()));
        let why = format!("its adapter is {}, and this job's is {}", shown(before.spec())?, shown(wanted)?);
        return Err(refused(why));
    }
    before.with_dropout(had.lora_dropout).map_err(|why| refused(why.to_string()))
}
