//! The state that the phases of a run work on.

use std::path::PathBuf;

use attune_domain::run::RunSpec;
use attune_model::{adapter::LoraAdapter, decoder::Decoder, optim::optimizer::AdamW};
use attune_text::{model::TextModel, rows::TrainRow};

use crate::{
    checkpoints::progress::Progress,
    data::sampler::{Cut, Sampler},
};

/// The model, the rows and the progress of a training.
pub struct Session {
    /// The platform's spec of the run.
    pub spec: RunSpec,
    /// The base's tokenizer and template.
    pub text: TextModel,
    /// Training rows.
    pub rows: Vec<TrainRow>,
    /// Held-out rows; none: no validation.
    pub validation: Vec<TrainRow>,
    /// The frozen base.
    pub decoder: Decoder,
    /// The adapter, which is trained.
    pub adapter: LoraAdapter,
    /// The step that `adapter` is of, if that is not the last one.
    pub adapter_step: Option<u64>,
    /// The optimizer and its moments.
    pub optimizer: AdamW,
    /// The order of rows.
    pub sampler: Sampler,
    /// The steps that are done.
    pub progress: Progress,
    /// The last state that is known to be good.
    pub origin: Origin,
    /// Steps of the whole job.
    pub total_steps: u64,
}

/// A state that a run begins with, or goes back to.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The adapter in this folder, which was trained before; `None`: a new adapter.
    Start(Option<PathBuf>),
    /// A checkpoint's folder.
    Checkpoint(PathBuf),
}

impl Session {
    /// Returns the limits of a micro-batch.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let plan = &self.spec.plan;
        Cut {
            rows: plan.micro_batch_size as usize,
            tokens: usize::try_from(plan.micro_batch_tokens).unwrap_or(usize::MAX),
        }
    }
}
