//! The second phase: optimiser steps, with validation and checkpoints in between.

use std::time::{Duration, Instant};

use attune_domain::run::{RunEvent, StepMetrics};
use attune_model::{
    batch::{LossSum, PackedBatch},
    gradients::Gradients,
    schedule::{self, Course},
    train::{TrainOptions, loss, loss_and_gradients},
};

use crate::{
    checkpoint, data::TrainRow, error::TrainerError, memory, run::Link, sampler::micro_batches, setup::Session,
};

/// The rehearsal is left out when it would be more than this share of the work, one in so many micro-batches.
const REHEARSAL_SHARE: u64 = 50;
/// Lines that an error names.
const NAMED_LINES: usize = 32;

/// Trains to the last step.
///
/// # Errors
/// [`TrainerError::NonFinite`]: the factors are then those of the step before. [`TrainerError::Stopped`], after a last
/// checkpoint. [`TrainerError::Ended`], [`TrainerError::Model`], [`TrainerError::Node`].
pub fn train(session: &mut Session, link: &Link) -> Result<(), TrainerError> {
    link.voice.say(RunEvent::Started {
        total_steps: session.total_steps,
        tokens_per_epoch: session.rows.iter().map(|row| row.example.ids.len() as u64).sum(),
        trainable_weights: session.adapter.bytes() / 4,
    })?;
    let mut gradients = Gradients::zeros(&session.adapter)?;
    rehearse(session, &mut gradients)?;
    let mut kept_step = session.progress.step;
    while session.progress.step < session.total_steps {
        let step = session.progress.step + 1;
        if !take_step(session, step, &mut gradients, link)? {
            return stop(session, kept_step, link);
        }
        let mut valid_loss = None;
        if is_validation_due(session, step) {
            match validate(session, link)? {
                Some(all) => valid_loss = Some(all.mean()),
                None => return stop(session, kept_step, link),
            }
        }
        if step.is_multiple_of(session.spec.train.checkpoint_every_steps.max(1)) {
            checkpoint::keep(session, valid_loss, link)?;
            kept_step = step;
        }
    }
    Ok(())
}

/// Runs the largest micro-batch there is and forgets its gradients, so that a lack of memory shows in seconds and not
/// at whichever step draws the longest rows.
fn rehearse(session: &Session, gradients: &mut Gradients) -> Result<(), TrainerError> {
    let all = micro_batches((0..session.rows.len()).collect(), length_of(&session.rows), micro_batch_size(session));
    let left = session.total_steps - session.progress.step.min(session.total_steps);
    let per_step = u64::from(session.spec.train.effective_batch_size).div_ceil(micro_batch_size(session) as u64);
    if left * per_step < REHEARSAL_SHARE {
        return Ok(());
    }
    let Some(largest) = all.first() else { return Ok(()) };
    let started = Instant::now();
    let batch = packed(&session.rows, largest)?;
    loss_and_gradients(
        &session.decoder,
        &session.adapter,
        &batch,
        options(session, batch.trained_tokens()),
        gradients,
    )?;
    gradients.clear()?;
    let (tokens, peak) = (batch.tokens(), memory::peak());
    tracing::info!(tokens, elapsed_ms = ms(started.elapsed()), "the largest micro-batch fits: {peak} at the peak");
    Ok(())
}

/// Takes one optimiser step and says how it went; `false`: a stop was asked for, and nothing was changed.
fn take_step(session: &mut Session, step: u64, gradients: &mut Gradients, link: &Link) -> Result<bool, TrainerError> {
    let started = Instant::now();
    let rows = session.sampler.batch(step);
    let batches = micro_batches(rows.clone(), length_of(&session.rows), micro_batch_size(session))
        .iter()
        .map(|part| packed(&session.rows, part))
        .collect::<Result<Vec<_>, _>>()?;
    let normaliser = batches.iter().map(PackedBatch::trained_tokens).sum();
    gradients.clear()?;
    let mut all = LossSum::default();
    for batch in &batches {
        if link.voice.is_stop_asked()? {
            return Ok(false);
        }
        all += loss_and_gradients(&session.decoder, &session.adapter, batch, options(session, normaliser), gradients)?;
    }
    let grad_norm = gradients.clip(session.spec.train.max_grad_norm)?;
    refuse_non_finite(session, step, &rows, (all.mean(), grad_norm))?;
    let learning_rate = learning_rate(session, step);
    session.optimizer.step(&mut session.adapter, gradients, learning_rate)?;
    session.progress.step = step;
    session.progress.trained_tokens += all.tokens;
    session.progress.train_loss = all.mean();
    let metrics = StepMetrics {
        step,
        total_steps: session.total_steps,
        epoch: session.sampler.epochs_after(step),
        train_loss: all.mean(),
        train_mean_token_accuracy: all.accuracy(),
        grad_norm,
        learning_rate,
        tokens: batches.iter().map(|batch| batch.tokens() as u64).sum(),
        trained_tokens: all.tokens,
        step_ms: ms(started.elapsed()),
        peak_memory: memory::peak(),
    };
    tracing::info!(
        step,
        train_loss = metrics.train_loss,
        grad_norm,
        learning_rate,
        step_ms = metrics.step_ms,
        "step {step} of {}",
        session.total_steps
    );
    link.voice.say(RunEvent::Step(metrics))?;
    Ok(true)
}

fn refuse_non_finite(
    session: &Session,
    step: u64,
    rows: &[usize],
    (loss, grad_norm): (f64, f64),
) -> Result<(), TrainerError> {
    let what = match (loss.is_finite(), grad_norm.is_finite()) {
        (true, true) => return Ok(()),
        (false, _) => "the loss",
        (true, false) => "the gradients' norm",
    };
    let mut lines: Vec<u64> = rows.iter().filter_map(|&row| Some(session.rows.get(row)?.line)).collect();
    lines.sort_unstable();
    let mut named: Vec<String> = lines.iter().take(NAMED_LINES).map(u64::to_string).collect();
    if lines.len() > NAMED_LINES {
        named.push("…".into());
    }
    Err(TrainerError::NonFinite { step, what, lines: named.join(", ") })
}

/// The rate of a step, counted from 1. The library counts from 0 and gives the first step of a warm-up a rate of zero;
/// asked one step ahead, of one step more, it gives every step a rate that teaches something.
fn learning_rate(session: &Session, step: u64) -> f64 {
    let (train, total) = (&session.spec.train, session.total_steps);
    let warmup = schedule::warmup_steps(train.warmup_ratio, total);
    let (schedule, num_cycles) = (train.schedule, train.num_cycles);
    let course = Course { schedule, peak: train.learning_rate, warmup, steps: total + 1, num_cycles };
    schedule::learning_rate(course, step)
}

fn is_validation_due(session: &Session, step: u64) -> bool {
    let every = session.spec.train.eval_every_steps;
    !session.validation.is_empty() && (step == session.total_steps || (every > 0 && step.is_multiple_of(every)))
}

/// A pass over the validation rows; `None`: a stop was asked for.
fn validate(session: &Session, link: &Link) -> Result<Option<LossSum>, TrainerError> {
    let rows = (0..session.validation.len()).collect();
    let mut all = LossSum::default();
    for part in micro_batches(rows, length_of(&session.validation), micro_batch_size(session)) {
        if link.voice.is_stop_asked()? {
            return Ok(None);
        }
        all += loss(&session.decoder, Some(&session.adapter), &packed(&session.validation, &part)?)?;
    }
    let step = session.progress.step;
    tracing::info!(step, valid_loss = all.mean(), "validated over {} rows", session.validation.len());
    link.voice.say(RunEvent::Evaluated { step, valid_loss: all.mean(), valid_mean_token_accuracy: all.accuracy() })?;
    Ok(Some(all))
}

/// Obeys a stop: keeps what was learnt since the last checkpoint, if that can be done.
fn stop(session: &Session, kept_step: u64, link: &Link) -> Result<(), TrainerError> {
    let step = session.progress.step;
    if step > kept_step {
        match checkpoint::keep(session, None, link) {
            Err(why) if why.last_event().is_none() => return Err(why),
            Err(why) => tracing::warn!(%why, "no checkpoint could be kept at the stop"),
            Ok(()) => {}
        }
    }
    Err(TrainerError::Stopped { step })
}

fn packed(rows: &[TrainRow], part: &[usize]) -> Result<PackedBatch, TrainerError> {
    let mut batch = PackedBatch::new();
    for row in part.iter().filter_map(|&row| rows.get(row)) {
        batch.push(&row.example.ids, &row.example.trained)?;
    }
    Ok(batch)
}

fn options(session: &Session, normaliser: u64) -> TrainOptions {
    TrainOptions { checkpointing: session.spec.plan.checkpointing, normaliser, share_prefixes: true, noise: None }
}

fn micro_batch_size(session: &Session) -> usize {
    session.spec.plan.micro_batch_size.max(1) as usize
}

fn length_of(rows: &[TrainRow]) -> impl Fn(usize) -> usize + '_ {
    |row| rows.get(row).map_or(0, |row| row.example.ids.len())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
