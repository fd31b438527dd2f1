//! The second phase: optimizer steps with validations and checkpoints, until the last step or early stopping.
//!
//! A checkpoint is written when the gradients of the next step are computed and finite, and before that step is
//! applied. So training can continue from every checkpoint, and a rollback to one always makes progress.

use std::time::Instant;

use attune_domain::run::{MessageLevel, RunEvent};
use attune_model::{
    allocator,
    optim::{gradients::Gradients, optimizer::AdamW},
    train::loss_and_gradients,
};
use serde_json::json;

use crate::{
    checkpoints::{best_adapter, checkpoint, exact::Exact, restore::restore},
    context::RunContext,
    data::{
        batches::{NoisePlace, length_of, options, packed},
        sampler::micro_batches,
    },
    error::{NonFinite, TrainerError},
    lr_finder, memory,
    processor::processor,
    session::{Origin, Session},
    step, validate,
};

/// The minimum number of remaining micro-batches for a warm-up: with fewer, it is skipped, so that it costs at most 2%
/// of the work, unless the task always requires it.
const WARMUP_SHARE: u64 = 50;

/// The state of a training that is not part of its session.
struct TrainState {
    gradients: Gradients,
    /// The step of the newest checkpoint.
    kept_step: u64,
    /// The validation loss at the session's current step.
    valid_loss: Option<f64>,
}

/// Trains until the last step or early stopping. Afterwards the session's adapter is the one to publish.
///
/// # Errors
/// [`TrainerError::NonFinite`]: a second time. [`TrainerError::Stopped`]: a stop was requested; a checkpoint was saved.
/// [`TrainerError::Ended`], [`TrainerError::Model`], [`TrainerError::Node`].
pub fn train(session: &mut Session, context: &RunContext) -> Result<(), TrainerError> {
    context.events.send(RunEvent::Started {
        total_steps: session.total_steps,
        tokens_per_epoch: (0..session.rows.len()).map(|row| length_of(&session.rows)(row) as u64).sum(),
        trainable_weights: session.adapter.bytes() / 4,
        processor: processor(),
    })?;
    let gradients = Gradients::zeros(&session.adapter)?;
    allocator::keep_freed_memory();
    let mut state = TrainState { gradients, kept_step: session.progress.step, valid_loss: None };
    warmup_largest_batch(session, &mut state.gradients)?;
    if session.spec.train.trainer.learning_rate_auto && session.progress.found_learning_rate.is_none() {
        let Some(found) = lr_finder::find(session, &mut state.gradients, context)? else {
            return Err(TrainerError::Stopped { step: 0 });
        };
        session.progress.found_learning_rate = Some(Exact(found));
    }
    loop {
        match go_on(session, &mut state, context) {
            Err(TrainerError::NonFinite(fault)) if !fault.again => go_back(session, &mut state, &fault, context)?,
            outcome => outcome?,
        }
        if is_done(session) {
            // Released first: the best adapter is read while the last one exists.
            state.gradients = Gradients::empty();
            tracing::info!(steps = session.progress.step, "the training ends: {} at the peak", memory::peak());
            return best_adapter::conclude(session, context);
        }
    }
}

fn is_done(session: &Session) -> bool {
    let patience = session.spec.train.trainer.early_stopping_patience;
    session.progress.step >= session.total_steps || session.progress.early_stopping.is_over(patience)
}

/// Runs steps until the training is done or a value is not finite.
fn go_on(session: &mut Session, state: &mut TrainState, context: &RunContext) -> Result<(), TrainerError> {
    loop {
        if validate::is_due(session) {
            match validate::validate(session, context)? {
                Some(loss) => state.valid_loss = Some(loss),
                None => return stop(session, state, context),
            }
        }
        if is_done(session) {
            return keep_if_due(session, state, context);
        }
        let step = session.progress.step + 1;
        let Some(computed) = step::compute(session, step, &mut state.gradients, context)? else {
            return stop(session, state, context);
        };
        keep_if_due(session, state, context)?;
        step::apply(session, &computed, &state.gradients, context)?;
        state.valid_loss = None;
    }
}

fn keep_if_due(session: &mut Session, state: &mut TrainState, context: &RunContext) -> Result<(), TrainerError> {
    let step = session.progress.step;
    if step == state.kept_step || !step.is_multiple_of(session.spec.train.trainer.checkpoint_every_steps.max(1)) {
        return Ok(());
    }
    let folder = checkpoint::keep(session, state.valid_loss, context)?;
    state.kept_step = step;
    let before = std::mem::replace(&mut session.origin, Origin::Checkpoint(folder));
    match before {
        Origin::Checkpoint(folder) => std::fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder)),
        Origin::Start(_) => Ok(()),
    }
}

/// Rolls back to the last good state, once per run, and halves the learning rate for the rest of the run.
fn go_back(
    session: &mut Session,
    state: &mut TrainState,
    fault: &NonFinite,
    context: &RunContext,
) -> Result<(), TrainerError> {
    let found = session.progress.found_learning_rate;
    // Released first, so that a rollback needs no more memory than training.
    (session.optimizer, state.gradients) = (AdamW::empty(), Gradients::empty());
    let restored = restore(&session.origin, &session.spec, &session.decoder, &context.scratch)?;
    (session.adapter, session.optimizer, session.progress) = restored;
    state.gradients = Gradients::zeros(&session.adapter)?;
    session.progress.found_learning_rate = found;
    session.progress.learning_rate_scale = Exact(0.5);
    session.progress.went_back_at = Some(fault.step);
    state.valid_loss = None;
    let (step, back_to) = (fault.step, session.progress.step);
    let text = format!(
        "Step {step}: {} is not a finite number; rolling back to step {back_to} and continuing at half the learning \
         rate. Rows (by line): {}",
        fault.what,
        fault.named_lines()
    );
    tracing::warn!(step, back_to, "{text}");
    let data = json!({"step": step, "what": fault.what, "lines": fault.lines, "back_to": back_to,
        "learning_rate_scale": 0.5});
    context.events.send(RunEvent::Message { level: MessageLevel::Warn, text, data })
}

/// Runs the largest micro-batch and discards its gradients, so that a lack of memory shows within seconds and not at
/// the step that samples the longest rows.
fn warmup_largest_batch(session: &Session, gradients: &mut Gradients) -> Result<(), TrainerError> {
    let length = length_of(&session.rows);
    let all = micro_batches((0..session.rows.len()).collect(), &length, session.micro_batch_limits());
    let left = session.total_steps - session.progress.step.min(session.total_steps);
    let rows_left = left * u64::from(session.spec.train.hyperparameters.batch_size);
    let is_cheap = rows_left * (all.len() as u64) >= WARMUP_SHARE * session.rows.len() as u64;
    if !(is_cheap || session.spec.always_warm_up) {
        return Ok(());
    }
    let tokens = |part: &&Vec<usize>| part.iter().map(|&row| length(row)).sum::<usize>();
    let Some(largest) = all.iter().max_by_key(tokens) else { return Ok(()) };
    let started = Instant::now();
    let batch = packed(session.objective, &session.rows, largest)?;
    let options = options(session, batch.trained_tokens(), NoisePlace { step: 0, micro_batch: 0 });
    loss_and_gradients(&session.decoder, &session.adapter, &batch, options, gradients)?;
    gradients.clear()?;
    let (tokens, peak) = (batch.tokens(), memory::peak());
    tracing::info!(
        tokens,
        elapsed_ms = step::ms(started.elapsed()),
        "the largest micro-batch fits: {peak} at the peak"
    );
    Ok(())
}

/// Handles a stop request: saves a checkpoint of the steps since the last one, if possible.
fn stop(session: &Session, state: &TrainState, context: &RunContext) -> Result<(), TrainerError> {
    let step = session.progress.step;
    if step > state.kept_step {
        match checkpoint::keep(session, state.valid_loss, context) {
            Err(why) if why.last_event().is_none() => return Err(why),
            Err(why) => tracing::warn!(%why, "no checkpoint could be saved at the stop"),
            Ok(_) => {}
        }
    }
    Err(TrainerError::Stopped { step })
}
