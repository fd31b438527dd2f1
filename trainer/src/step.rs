//! One optimizer step: first its gradients, which may not be finite, then the update.

use std::time::{Duration, Instant};

use attune_domain::run::{MessageLevel, RunEvent, StepMetrics, metric::MetricName};
use attune_model::{
    adapter::LoraAdapter,
    batch::{LossSum, PackedBatch},
    error::ModelError,
    optim::{
        gradients::Gradients,
        schedule::{self, LrSchedule},
    },
    train::loss_and_gradients,
};
use serde_json::json;

use crate::{
    checkpoints::exact::Exact,
    context::RunContext,
    data::{
        batches::{NoisePlace, length_of, lines_of, options, packed},
        sampler::micro_batches,
    },
    error::{NonFinite, TrainerError},
    memory,
    objective::interface::{LossMetrics, Split},
    session::Session,
};

/// A step whose gradients are computed and finite, before the update.
pub(crate) struct Computed {
    step: u64,
    took: Duration,
    rows: Vec<usize>,
    measured: LossMetrics,
    tokens: u64,
    trained_tokens: u64,
    grad_norm: f64,
}

/// Computes the gradients of `step` over the whole effective batch. Returns `None` if a stop was requested.
///
/// # Errors
/// [`TrainerError::NonFinite`]: the loss or the gradients' norm. [`TrainerError::Model`], [`TrainerError::Ended`].
pub(crate) fn compute(
    session: &mut Session,
    step: u64,
    gradients: &mut Gradients,
    context: &RunContext,
) -> Result<Option<Computed>, TrainerError> {
    let started = Instant::now();
    let rows = session.sampler.batch(step);
    let Some((loss, tokens)) = accumulate(session, (&session.adapter, step), &rows, (&mut *gradients, context))? else {
        return Ok(None);
    };
    let grad_norm = gradients.clip(session.spec.train.trainer.max_grad_norm)?;
    let measured = session.objective.metrics(loss, Split::Training);
    let what = match (measured.loss.is_finite(), grad_norm.is_finite()) {
        (true, true) => {
            let (took, trained_tokens) = (started.elapsed(), loss.tokens);
            return Ok(Some(Computed { step, took, rows, measured, tokens, trained_tokens, grad_norm }));
        }
        (false, _) => "the loss",
        (true, false) => "the gradients' norm",
    };
    Err(non_finite(session, step, &rows, what.into()))
}

/// Accumulates the gradients of `adapter` over a step's effective batch. Returns the loss and the number of tokens, or
/// `None` if a stop was requested. The batch is split into micro-batches as the plan requires, which changes nothing
/// unless dropout or noise is enabled.
pub(crate) fn accumulate(
    session: &Session,
    (adapter, step): (&LoraAdapter, u64),
    rows: &[usize],
    (gradients, context): (&mut Gradients, &RunContext),
) -> Result<Option<(LossSum, u64)>, TrainerError> {
    let batches = micro_batches(rows.to_vec(), length_of(&session.rows), session.micro_batch_limits())
        .iter()
        .map(|part| packed(session.objective, &session.rows, part))
        .collect::<Result<Vec<_>, _>>()?;
    let normaliser = batches.iter().map(PackedBatch::trained_tokens).sum();
    gradients.clear()?;
    let mut loss = LossSum::default();
    for (micro_batch, batch) in batches.iter().enumerate() {
        if context.events.is_stop_requested()? {
            return Ok(None);
        }
        let options = options(session, normaliser, NoisePlace { step, micro_batch });
        loss += loss_and_gradients(&session.decoder, adapter, batch, options, gradients)?;
    }
    Ok(Some((loss, batches.iter().map(|batch| batch.tokens() as u64).sum())))
}

/// Applies the step and reports its metrics.
///
/// # Errors
/// [`TrainerError::NonFinite`]: a factor would be NaN or infinite; nothing was changed.
/// [`TrainerError::Model`], [`TrainerError::Ended`].
pub(crate) fn apply(
    session: &mut Session,
    computed: &Computed,
    gradients: &Gradients,
    context: &RunContext,
) -> Result<(), TrainerError> {
    let (started, step, loss) = (Instant::now(), computed.step, computed.measured.loss);
    let learning_rate = learning_rate(session, step);
    match session.optimizer.step(&mut session.adapter, gradients, learning_rate) {
        Err(ModelError::NotFinite(name)) => {
            return Err(non_finite(session, step, &computed.rows, format!("factor '{name}' after it")));
        }
        outcome => outcome?,
    }
    session.progress.step = step;
    session.progress.trained_tokens += computed.trained_tokens;
    session.progress.train_loss = Exact(loss);
    let report = report(session, computed, learning_rate, ms(computed.took + started.elapsed()));
    tracing::info!(
        step,
        train_loss = loss,
        grad_norm = computed.grad_norm,
        learning_rate,
        step_ms = report.step_ms,
        "step {step} of {}",
        session.total_steps
    );
    context.events.send(RunEvent::Step(report))?;
    match session.progress.spikes.see(loss) {
        Some(mean) => say_spike(step, loss, mean, context),
        None => Ok(()),
    }
}

/// Returns the report of a step that was applied.
fn report(session: &Session, computed: &Computed, learning_rate: f64, step_ms: u64) -> StepMetrics {
    let mut metrics = computed.measured.named.clone();
    metrics.extend([
        (MetricName::Epoch, session.sampler.epochs_after(computed.step)),
        (MetricName::LearningRate, learning_rate),
        (MetricName::GradNorm, computed.grad_norm),
    ]);
    StepMetrics {
        step: computed.step,
        total_steps: session.total_steps,
        train_loss: computed.measured.loss,
        tokens: computed.tokens,
        trained_tokens: computed.trained_tokens,
        step_ms,
        peak_memory: memory::peak(),
        metrics,
    }
}

fn say_spike(step: u64, loss: f64, mean: f64, context: &RunContext) -> Result<(), TrainerError> {
    let text = format!(
        "Step {step}: the training loss, {loss:.4}, is for the fifth step in a row at least twice the mean of the \
         earlier steps, {mean:.4}"
    );
    tracing::warn!(step, loss, mean, "{text}");
    let data = json!({"step": step, "loss": loss, "mean": mean});
    context.events.send(RunEvent::Message { level: MessageLevel::Warn, text, data })
}

fn non_finite(session: &Session, step: u64, rows: &[usize], what: String) -> TrainerError {
    let again = session.progress.went_back_at.is_some();
    TrainerError::NonFinite(NonFinite { step, what, lines: lines_of(&session.rows, rows), again })
}

/// Returns the learning rate of a step, counted from 1. The scheduler counts from 0 and starts the warm-up at a rate of
/// zero. Calling it one step ahead, with one step more, gives every step a rate above zero.
fn learning_rate(session: &Session, step: u64) -> f64 {
    let (train, progress, total) = (&session.spec.train, &session.progress, session.total_steps);
    let peak = progress.found_learning_rate.map_or(train.trainer.learning_rate, |found| found.0);
    let warmup = schedule::warmup_steps(train.trainer.warmup_ratio, total);
    let (schedule, num_cycles) = (train.trainer.schedule, train.trainer.num_cycles);
    let lr_schedule = LrSchedule { schedule, peak, warmup, steps: total + 1, num_cycles };
    progress.learning_rate_scale.0 * schedule::learning_rate(lr_schedule, step)
}

/// Converts a duration to milliseconds.
#[must_use]
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
