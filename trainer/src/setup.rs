//! The first phase: from files to a model, an adapter, an optimiser and rows.

use attune_domain::run::RunSpec;
use attune_model::{
    adapter::LoraAdapter,
    decoder::Decoder,
    optimizer::{AdamW, AdamWOptions},
};
use attune_text::{model::TextModel, rows::RowPolicy};

use crate::{
    checkpoint::{self, Progress},
    data::{TrainRow, read_rows},
    error::TrainerError,
    run::Fetched,
    sampler::Sampler,
};

/// All that training works with.
pub struct Session {
    /// What was asked for.
    pub spec: RunSpec,
    /// The base's tokenizer and template.
    pub text: TextModel,
    /// Training rows.
    pub rows: Vec<TrainRow>,
    /// Held-out rows; none: no validation.
    pub validation: Vec<TrainRow>,
    /// The frozen base.
    pub decoder: Decoder,
    /// What is trained.
    pub adapter: LoraAdapter,
    /// Its moments.
    pub optimizer: AdamW,
    /// The order of rows.
    pub sampler: Sampler,
    /// How far it is.
    pub progress: Progress,
    /// Steps of the whole job.
    pub total_steps: u64,
}

impl Session {
    /// Loads everything; a checkpoint too, if there is one.
    ///
    /// # Errors
    /// [`TrainerError::Text`], [`TrainerError::Model`]: the base is not one that can be trained.
    /// [`TrainerError::Data`]: rows that cannot be trained on. [`TrainerError::Checkpoint`].
    pub fn set_up(spec: RunSpec, fetched: &Fetched) -> Result<Self, TrainerError> {
        let threads = i32::try_from(spec.plan.threads.max(1)).unwrap_or(1);
        tch::set_num_threads(threads);
        let train = &spec.train;
        let text = TextModel::open(&fetched.base)?;
        let policy = RowPolicy::from(train);
        let rows = read_rows(&fetched.training_file, &text, policy, "training_file")?;
        let validation = match &fetched.validation_file {
            Some(file) => read_rows(file, &text, policy, "validation_file")?,
            None => Vec::new(),
        };
        tracing::info!(rows = rows.len(), validation_rows = validation.len(), "the rows are read");

        let decoder = Decoder::load(&fetched.base, train.quantization)?;
        let architecture = decoder.architecture();
        let (adapter, optimizer, progress) = match &fetched.checkpoint {
            Some(folder) => checkpoint::load(folder, &spec, architecture)?,
            None => {
                let adapter = LoraAdapter::new(architecture, train.adapter.clone(), train.seed)?;
                let optimizer = AdamW::new(&adapter, optimizer_options(&spec))?;
                (adapter, optimizer, Progress::default())
            }
        };
        tracing::info!(step = progress.step, "the model is loaded");
        let sampler = Sampler::new(rows.len(), train.effective_batch_size as usize, train.seed);
        let total_steps = train.total_steps(rows.len() as u64);
        Ok(Self { spec, text, rows, validation, decoder, adapter, optimizer, sampler, progress, total_steps })
    }
}

/// PyTorch's defaults, with the job's decay.
pub(crate) fn optimizer_options(spec: &RunSpec) -> AdamWOptions {
    AdamWOptions { weight_decay: spec.train.weight_decay, ..AdamWOptions::default() }
}
