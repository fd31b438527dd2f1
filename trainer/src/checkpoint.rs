//! A state from which a run can go on as if it had never been interrupted: the adapter, the optimiser's moments, and
//! how far it is. The order of rows needs nothing beside the seed and the step.

use std::{fs, path::Path};

use attune_domain::{
    architecture::Architecture,
    run::{RunEvent, RunSpec},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    error::ModelError,
    optimizer::AdamW,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    blobs::put_folder,
    error::TrainerError,
    run::Link,
    setup::{Session, optimizer_options},
};

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Optimiser steps that are done.
    pub step: u64,
    /// Tokens with a loss so far, each as often as it was trained on.
    pub trained_tokens: u64,
    /// The last step's loss.
    pub train_loss: f64,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    /// From 0, with the rows of it that are done: told for the reader, worked out again from `step`.
    epoch: u64,
    position_in_epoch: u64,
    trained_tokens: u64,
    train_loss: f64,
    seed: u64,
    /// A checkpoint is only good for the job that it was made in.
    spec_sha256: String,
}

/// Writes a checkpoint, puts its files and says so. The files are gone from this node afterwards.
///
/// # Errors
/// [`TrainerError::Model`], [`TrainerError::Node`], [`TrainerError::Ended`].
pub fn keep(session: &Session, valid_loss: Option<f64>, link: &Link) -> Result<(), TrainerError> {
    let step = session.progress.step;
    let folder = link.scratch.join(format!("checkpoint-{step}"));
    let written = write(session, &folder)
        .and_then(|()| Ok(link.network.block_on(put_folder(&link.platform, link.run_lease, &folder))?));
    let gone = fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder));
    let files = written?;
    gone?;
    tracing::info!(step, "a checkpoint is kept");
    link.voice.say(RunEvent::Checkpointed { step, files, train_loss: session.progress.train_loss, valid_loss })
}

/// Writes a checkpoint's files.
pub(crate) fn write(session: &Session, folder: &Path) -> Result<(), TrainerError> {
    let (spec, progress) = (&session.spec, &session.progress);
    session.adapter.save(folder, &Provenance { base_model: spec.base_name.clone() })?;
    session.optimizer.save(&session.adapter, &folder.join(OPTIMIZER_FILE))?;
    let next = session.sampler.place(progress.step + 1);
    let state = State {
        step: progress.step,
        epoch: next.epoch,
        position_in_epoch: next.part.start as u64,
        trained_tokens: progress.trained_tokens,
        train_loss: progress.train_loss,
        seed: spec.train.seed,
        spec_sha256: digest(spec),
    };
    let path = folder.join(STATE_FILE);
    let text = serde_json::to_vec_pretty(&state).map_err(|e| TrainerError::Internal(e.to_string()))?;
    fs::write(&path, text).map_err(TrainerError::io(&path))
}

/// Reads a checkpoint back.
///
/// # Errors
/// [`TrainerError::Checkpoint`]: it is damaged, or of another job or another step. [`TrainerError::Node`].
pub fn load(
    folder: &Path,
    spec: &RunSpec,
    architecture: &Architecture,
) -> Result<(LoraAdapter, AdamW, Progress), TrainerError> {
    let path = folder.join(STATE_FILE);
    let text = fs::read(&path).map_err(TrainerError::io(&path))?;
    let state: State =
        serde_json::from_slice(&text).map_err(|e| TrainerError::Checkpoint(format!("{STATE_FILE}: {e}")))?;
    let wanted = spec.resume.as_ref().map_or(state.step, |resume| resume.step);
    if state.step != wanted {
        return Err(TrainerError::Checkpoint(format!("it is of step {}, and step {wanted} is asked for", state.step)));
    }
    if state.spec_sha256 != digest(spec) {
        return Err(TrainerError::Checkpoint("it was made with other settings, another base or other rows".into()));
    }
    let damaged = |why: ModelError| TrainerError::Checkpoint(why.to_string());
    let adapter = LoraAdapter::load(folder, architecture).map_err(damaged)?;
    if *adapter.spec() != spec.train.adapter {
        return Err(TrainerError::Checkpoint("its adapter has another shape".into()));
    }
    let optimizer = AdamW::load(&adapter, optimizer_options(spec), &folder.join(OPTIMIZER_FILE)).map_err(damaged)?;
    if optimizer.steps() != state.step {
        let (theirs, ours) = (optimizer.steps(), state.step);
        return Err(TrainerError::Checkpoint(format!(
            "its optimiser is of step {theirs}, and its state of step {ours}"
        )));
    }
    let progress = Progress { step: state.step, trained_tokens: state.trained_tokens, train_loss: state.train_loss };
    Ok((adapter, optimizer, progress))
}

/// Names all that a step's result depends on. The plan is left out: it may change between attempts.
fn digest(spec: &RunSpec) -> String {
    let all = serde_json::json!([spec.train, spec.base_digest, spec.training_file.sha256]).to_string();
    Sha256::digest(all.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
