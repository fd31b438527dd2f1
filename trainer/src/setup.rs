//! The first phase: from files to a model, an adapter, an optimiser and rows.

use std::path::{Path, PathBuf};

use attune_domain::{
    architecture::Architecture,
    run::RunSpec,
    spec::{AdapterSpec, Optimizer, TrainSpec},
};
use attune_model::{
    adapter::LoraAdapter,
    decoder::Decoder,
    optimizer::{AdamW, AdamWOptions},
};
use attune_text::{model::TextModel, rows::RowPolicy};

use crate::{
    checkpoint,
    data::{TrainRow, read_rows},
    error::TrainerError,
    progress::Progress,
    run::Fetched,
    sampler::{Cut, Sampler},
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
    /// The step that `adapter` is of, if that is not the last one.
    pub adapter_step: Option<u64>,
    /// Its moments.
    pub optimizer: AdamW,
    /// The order of rows.
    pub sampler: Sampler,
    /// How far it is.
    pub progress: Progress,
    /// The last state that is known to be good.
    pub origin: Origin,
    /// Steps of the whole job.
    pub total_steps: u64,
}

/// A state that a run begins with, or goes back to.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Nothing is learnt yet but what the adapter in this folder had learnt; `None`: a new adapter.
    Start(Option<PathBuf>),
    /// A checkpoint's folder.
    Checkpoint(PathBuf),
}

impl Origin {
    /// The state itself, the same each time. Whether a run goes back to it or another process goes on from it makes no
    /// difference, since this is the only way to it.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`], [`TrainerError::ContinueFrom`], [`TrainerError::Model`], [`TrainerError::Node`].
    pub fn state(
        &self,
        spec: &RunSpec,
        decoder: &Decoder,
        scratch: &Path,
    ) -> Result<(LoraAdapter, AdamW, Progress), TrainerError> {
        let adapter = match self {
            Self::Checkpoint(folder) => return checkpoint::load(folder, spec, decoder.architecture(), scratch),
            Self::Start(Some(folder)) => continued(folder, spec, decoder.architecture())?,
            Self::Start(None) => decoder.new_adapter(spec.train.adapter.clone(), spec.train.seed)?,
        };
        let optimizer = AdamW::new(&adapter, optimizer_options(spec))?;
        Ok((adapter, optimizer, Progress::default()))
    }
}

impl Session {
    /// Loads everything; a checkpoint too, if there is one. `scratch` is a folder for what is written on the way.
    ///
    /// # Errors
    /// [`TrainerError::Text`], [`TrainerError::Model`]: the base is not one that can be trained.
    /// [`TrainerError::Data`]: rows that cannot be trained on. [`TrainerError::Checkpoint`],
    /// [`TrainerError::ContinueFrom`].
    pub fn set_up(spec: RunSpec, fetched: &Fetched, scratch: &Path) -> Result<Self, TrainerError> {
        let threads = i32::try_from(spec.plan.threads.max(1)).unwrap_or(1);
        tch::set_num_threads(threads);
        let train = &spec.train;
        let text = TextModel::open(&fetched.base)?.with_kwargs(train.chat_template_kwargs.clone());
        let policy = RowPolicy::new(train, spec.template_now);
        let rows = read_rows(&fetched.training_file, &text, policy, "training_file")?;
        let validation = match &fetched.validation_file {
            Some(file) => read_rows(file, &text, policy, "validation_file")?,
            None => Vec::new(),
        };
        tracing::info!(rows = rows.len(), validation_rows = validation.len(), "the rows are read");

        let decoder = Decoder::load_cached(&fetched.base, train.quantization, Some(&fetched.packed_base))?;
        let origin = match &fetched.checkpoint {
            Some(folder) => Origin::Checkpoint(folder.clone()),
            None => Origin::Start(fetched.continue_from.clone()),
        };
        let (adapter, optimizer, progress) = origin.state(&spec, &decoder, scratch)?;
        if let Some(resume) = spec.resume.as_ref().filter(|resume| resume.step != progress.step) {
            let why = format!("it is of step {}, and step {} is asked for", progress.step, resume.step);
            return Err(TrainerError::Checkpoint(why));
        }
        tracing::info!(step = progress.step, "the model is loaded");
        let sampler = Sampler::new(rows.len(), train.effective_batch_size as usize, train.seed);
        let total_steps = train.total_steps(rows.len() as u64);
        Ok(Self {
            spec,
            text,
            rows,
            validation,
            decoder,
            adapter,
            adapter_step: None,
            optimizer,
            sampler,
            progress,
            origin,
            total_steps,
        })
    }

    /// What goes through the decoder at once.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let plan = &self.spec.plan;
        Cut {
            rows: plan.micro_batch_size as usize,
            tokens: usize::try_from(plan.micro_batch_tokens).unwrap_or(usize::MAX),
        }
    }
}

/// The adapter that was trained before, as the first state of this one. Its dropout is no part of it.
fn continued(folder: &Path, spec: &RunSpec, architecture: &Architecture) -> Result<LoraAdapter, TrainerError> {
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

/// PyTorch's defaults, and what the job says.
pub(crate) fn optimizer_options(spec: &RunSpec) -> AdamWOptions {
    let TrainSpec { weight_decay, loraplus_lr_ratio, optimizer, .. } = spec.train;
    let eight_bit = optimizer == Optimizer::Adamw8bit;
    AdamWOptions { weight_decay, loraplus_lr_ratio, eight_bit, ..AdamWOptions::default() }
}
