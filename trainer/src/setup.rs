//! The first phase: loads the model, the adapter, the optimizer and the rows.

use std::path::Path;

use attune_domain::run::task::TrainTask;
use attune_model::{allocator, decoder::Decoder};
use attune_text::{model::TextModel, rows::RowPolicy};

use crate::{
    checkpoints::restore::restore,
    data::{rows::read_rows, sampler::Sampler},
    error::TrainerError,
    inputs::Inputs,
    memory, objective,
    session::{Origin, Session},
};

/// Loads the model, the adapter and the rows, and the checkpoint if there is one. `scratch` is the folder for temporary
/// files.
///
/// # Errors
/// [`TrainerError::Text`], [`TrainerError::Model`]: the base cannot be trained.
/// [`TrainerError::Data`]: rows that cannot be trained on. [`TrainerError::Checkpoint`],
/// [`TrainerError::ContinueFrom`].
pub fn set_up(spec: TrainTask, inputs: &Inputs, scratch: &Path) -> Result<Session, TrainerError> {
    let threads = i32::try_from(spec.plan.threads.max(1)).unwrap_or(1);
    tch::set_num_threads(threads);
    let train = &spec.train;
    let text = TextModel::open(&inputs.base)?.with_kwargs(train.chat_template_kwargs.clone());
    let policy = RowPolicy::new(train, spec.template_now);
    let rows = read_rows(&inputs.training_file, &text, policy, "training_file")?;
    let validation = match &inputs.validation_file {
        Some(file) => read_rows(file, &text, policy, "validation_file")?,
        None => Vec::new(),
    };
    let (count, validation_rows) = (rows.len(), validation.len());
    tracing::info!(rows = count, validation_rows, "the rows are read: {} at the peak", memory::peak());

    allocator::return_freed_memory();
    let decoder =
        Decoder::load_cached(&inputs.base, train.quantization, spec.plan.placement, Some(&inputs.packed_base))?;
    let origin = match &inputs.checkpoint {
        Some(folder) => Origin::Checkpoint(folder.clone()),
        None => Origin::Start(inputs.continue_from.clone()),
    };
    let (adapter, optimizer, progress) = restore(&origin, &spec, &decoder, scratch)?;
    if let Some(resume) = spec.resume.as_ref().filter(|resume| resume.step != progress.step) {
        let why = format!("it is of step {}, and step {} was requested", progress.step, resume.step);
        return Err(TrainerError::Checkpoint(why));
    }
    tracing::info!(step = progress.step, "the model is loaded: {} at the peak", memory::peak());
    let sampler = Sampler::new(rows.len(), train.hyperparameters.batch_size as usize, train.seed);
    let total_steps = train.total_steps(rows.len() as u64);
    Ok(Session {
        objective: objective::of(train.method),
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
