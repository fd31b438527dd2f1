//! Checkpoints: the state from which a run resumes as if it had not been interrupted. It holds the adapter, the
//! optimizer's moments, the progress, and the best adapter so far if that is another one.
//!
//! A checkpoint folder is written under a temporary name, completed with its manifest, and renamed. Then its files are
//! uploaded; the platform writes the row only when it has all of them. The newest checkpoint also stays on this node,
//! for rollbacks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attune_domain::{
    architecture::Architecture,
    digest::Sha256,
    run::{RunEvent, task::TrainTask},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    error::ModelError,
    optim::optimizer::AdamW,
};
use attune_process::failpoint::FailPoint;
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::{
    checkpoints::{best_adapter::best_file, manifest, progress::Progress, spec_text::ordered},
    context::RunContext,
    error::TrainerError,
    optimizer::optimizer_options,
    publishing::blobs::put_folder,
    session::Session,
};

const ADAPTER_FILE: &str = "adapter_model.safetensors";
const BEST_FILE: &str = "best_model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// The content of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    #[serde(flatten)]
    progress: Progress,
    /// The epoch, counted from 0. This and `position_in_epoch` are for human readers; loading recomputes them from
    /// `step`.
    epoch: u64,
    position_in_epoch: u64,
    seed: u64,
    /// The digest of the job's settings and inputs. A checkpoint is valid only for the job that wrote it.
    spec_sha256: Sha256,
}

/// Saves a checkpoint, uploads its files and reports it. Returns its folder on this node.
///
/// # Errors
/// [`TrainerError::Model`], [`TrainerError::Node`], [`TrainerError::Ended`].
pub fn keep(session: &Session, valid_loss: Option<f64>, context: &RunContext) -> Result<PathBuf, TrainerError> {
    let step = session.progress.step;
    let folder = context.scratch.join(format!("checkpoint-{step}"));
    // Left by the same run before a rollback.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder))?;
    }
    let unfinished = context.scratch.join("checkpoint-unfinished");
    if let Err(why) = write(session, &unfinished, &context.scratch) {
        // The first error is the one to return.
        let _ = fs::remove_dir_all(&unfinished);
        return Err(why);
    }
    FailPoint::CheckpointRename.before();
    fs::rename(&unfinished, &folder).map_err(TrainerError::io(&folder))?;
    FailPoint::CheckpointRename.after();
    FailPoint::CheckpointUpload.before();
    let files = context.network.block_on(put_folder(&context.platform, context.run_lease, &folder))?;
    FailPoint::CheckpointUpload.after();
    tracing::info!(step, "a checkpoint is saved");
    let train_loss = session.progress.train_loss.0;
    context.events.send(RunEvent::Checkpointed { step, files, train_loss, valid_loss })?;
    Ok(folder)
}

/// Writes a checkpoint's files, the manifest last. The best adapter is copied from `scratch`.
fn write(session: &Session, folder: &Path, scratch: &Path) -> Result<(), TrainerError> {
    let (spec, progress) = (&session.spec, &session.progress);
    session.adapter.save(folder, &Provenance { base_model: spec.base.name.clone() })?;
    session.optimizer.save(&session.adapter, &folder.join(OPTIMIZER_FILE))?;
    if let Some(best) = progress.early_stopping.best.filter(|best| best.step != progress.step) {
        let to = folder.join(BEST_FILE);
        fs::copy(best_file(scratch, best.step), &to).map_err(TrainerError::io(&to))?;
    }
    let next = session.sampler.place(progress.step + 1);
    let state = State {
        progress: progress.clone(),
        epoch: next.epoch,
        position_in_epoch: next.part.start as u64,
        seed: spec.train.seed,
        spec_sha256: digest(spec, progress),
    };
    let path = folder.join(STATE_FILE);
    let text = serde_json::to_vec_pretty(&state).map_err(|e| TrainerError::Internal(e.to_string()))?;
    fs::write(&path, text).map_err(TrainerError::io(&path))?;
    manifest::seal(folder)
}

/// Loads a checkpoint, and copies its best adapter to `scratch`.
///
/// # Errors
/// [`TrainerError::Checkpoint`]: it is incomplete, damaged, or of another job. [`TrainerError::Node`].
pub fn load(
    folder: &Path,
    spec: &TrainTask,
    architecture: &Architecture,
    scratch: &Path,
) -> Result<(LoraAdapter, AdamW, Progress), TrainerError> {
    manifest::check(folder)?;
    let path = folder.join(STATE_FILE);
    let text = fs::read(&path).map_err(TrainerError::io(&path))?;
    let state: State =
        serde_json::from_slice(&text).map_err(|e| TrainerError::Checkpoint(format!("{STATE_FILE}: {e}")))?;
    let progress = state.progress;
    if state.spec_sha256 != digest(spec, &progress) {
        return Err(TrainerError::Checkpoint("it was saved with other settings, another base or other rows".into()));
    }
    let damaged = |why: ModelError| TrainerError::Checkpoint(why.to_string());
    let adapter = LoraAdapter::load(folder, architecture).map_err(damaged)?;
    if *adapter.spec() != spec.train.adapter {
        return Err(TrainerError::Checkpoint("its adapter has another shape".into()));
    }
    let optimizer =
        AdamW::load(&adapter, optimizer_options(&spec.train.trainer), &folder.join(OPTIMIZER_FILE)).map_err(damaged)?;
    if optimizer.steps() != progress.step {
        let (theirs, ours) = (optimizer.steps(), progress.step);
        return Err(TrainerError::Checkpoint(format!(
            "its optimiser is of step {theirs}, and its state of step {ours}"
        )));
    }
    if let Some(best) = progress.early_stopping.best {
        let from = folder.join(if best.step == progress.step { ADAPTER_FILE } else { BEST_FILE });
        fs::copy(&from, best_file(scratch, best.step)).map_err(TrainerError::io(&from))?;
    }
    Ok((adapter, optimizer, progress))
}

/// Hashes everything that a step's result depends on. The plan is excluded: it may change between attempts. A learning
/// rate from a range test counts as if the job had requested it, since the platform may write it into the job.
fn digest(spec: &TrainTask, progress: &Progress) -> Sha256 {
    let mut train = spec.train.clone();
    if let Some(found) = progress.found_learning_rate.filter(|_| train.trainer.learning_rate_auto) {
        train.trainer.learning_rate = found.0;
    }
    train.trainer.learning_rate_auto = false;
    train.hyperparameters.learning_rate_multiplier = 0.0;
    let first = spec.continue_from.as_ref().map(|first| first.adapter_version_id);
    let all = serde_json::json!([ordered(&train), spec.base.digest, spec.training_file.sha256, first]).to_string();
    Sha256::from_digest(sha2::Sha256::digest(all.as_bytes()).into())
}
