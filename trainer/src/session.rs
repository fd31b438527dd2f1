//! The state that the phases of a run work on.

use std::path::PathBuf;

use attune_domain::run::task::TrainTask;
use attune_model::{adapter::LoraAdapter, decoder::Decoder, optim::optimizer::AdamW};
use attune_text::{model::TextModel, rows::TrainRow};

use crate::{
    checkpoints::progress::Progress,
    data::sampler::{MicroBatchLimits, Sampler},
    objective::interface::Objective,
};

/// The model, the rows and the progress of a training.
pub struct Session {
    /// The task, as fetched from the platform.
    pub spec: TrainTask,
    /// The objective of the job's method.
    pub objective: &'static dyn Objective,
    /// The base's tokenizer and chat template.
    pub text: TextModel,
    /// The training rows.
    pub rows: Vec<TrainRow>,
    /// The validation rows. Empty: no validation.
    pub validation: Vec<TrainRow>,
    /// The frozen base model.
    pub decoder: Decoder,
    /// The adapter that is trained.
    pub adapter: LoraAdapter,
    /// The step of `adapter`, if that is not the last one.
    pub adapter_step: Option<u64>,
    /// The optimizer with its moments.
    pub optimizer: AdamW,
    /// The order of rows.
    pub sampler: Sampler,
    /// The progress: steps done and everything that decides the next one.
    pub progress: Progress,
    /// The last known good state: the start or the newest checkpoint.
    pub origin: Origin,
    /// The number of optimizer steps of the whole job.
    pub total_steps: u64,
}

/// A state that a run starts from or rolls back to.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The adapter of an earlier job in this folder. `None`: a new adapter.
    Start(Option<PathBuf>),
    /// A checkpoint's folder.
    Checkpoint(PathBuf),
}

impl Session {
    /// Returns the micro-batch limits of the plan.
    #[must_use]
    pub fn micro_batch_limits(&self) -> MicroBatchLimits {
        let plan = &self.spec.plan;
        MicroBatchLimits {
            rows: plan.micro_batch_size as usize,
            tokens: usize::try_from(plan.micro_batch_tokens).unwrap_or(usize::MAX),
        }
    }
}
