//! The files that a run reads, downloaded to this node.

use std::path::{Path, PathBuf};

use attune_domain::run::{RemoteFile, task::TrainTask};
use attune_node::{Cache, Folder, NodeError, Platform, fetch};
use reqwest::Client;

use crate::error::{TrainerError, in_full};

/// The files that a run reads, on this node.
pub struct Inputs {
    /// The base model's Hugging Face folder.
    pub base: Folder,
    /// The file of the base's packed weights, which is written if it does not exist.
    pub packed_base: PathBuf,
    /// The training rows, as JSONL.
    pub training_file: PathBuf,
    /// The held-out rows, as JSONL.
    pub validation_file: Option<PathBuf>,
    /// The checkpoint's files, if the run resumes from one.
    pub checkpoint: Option<PathBuf>,
    /// The adapter's files, if the job continues from one and this run does not resume from a checkpoint.
    pub continue_from: Option<PathBuf>,
}

/// Downloads all files that the run reads.
///
/// # Errors
/// [`TrainerError::Checkpoint`]: a file of the checkpoint is missing or has other content. [`TrainerError::Node`].
pub(crate) async fn download_inputs(
    platform: &Platform,
    spec: &TrainTask,
    cache: &Cache,
    scratch: &Path,
) -> Result<Inputs, TrainerError> {
    let client = platform.client();
    let base = cache.base(client, spec.base.digest, &spec.base.files).await?;
    let folder = |name: &str| {
        let path = scratch.join(name);
        std::fs::create_dir_all(&path).map_err(TrainerError::io(&path)).map(|()| path)
    };
    let training_file = fetch(client, &spec.training_file, &folder("training")?).await?;
    let validation_file = match &spec.validation_file {
        Some(file) => Some(fetch(client, file, &folder("validation")?).await?),
        None => None,
    };
    let packed_base = cache.packed_base(spec.base.digest, spec.train.quantization)?;
    let mut inputs =
        Inputs { base, packed_base, training_file, validation_file, checkpoint: None, continue_from: None };
    match (&spec.resume, &spec.continue_from) {
        (Some(resume), _) => {
            let there = fetch_all(client, &resume.files, folder("resume")?).await;
            inputs.checkpoint = Some(there.map_err(|why| match is_damage(&why) {
                true => TrainerError::Checkpoint(in_full(&why)),
                false => why.into(),
            })?);
        }
        (None, Some(first)) => {
            inputs.continue_from = Some(fetch_all(client, &first.files, folder("continue_from")?).await?);
        }
        (None, None) => {}
    }
    Ok(inputs)
}

/// Returns whether an object is missing or has other content, which a retry cannot repair.
const fn is_damage(why: &NodeError) -> bool {
    matches!(why, NodeError::Changed { .. } | NodeError::Refused { status: 404, .. })
}

async fn fetch_all(client: &Client, files: &[RemoteFile], into: PathBuf) -> Result<PathBuf, NodeError> {
    for file in files {
        fetch(client, file, &into).await?;
    }
    Ok(into)
}
