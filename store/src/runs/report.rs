//! Trainers' reports. One report is one transaction: it is applied as a whole, once, and only from the run that holds
//! the job.

use std::collections::BTreeMap;

use attune_domain::{
    digest::Sha256,
    id::{CheckpointId, JobId, RunId},
    job::{JobEvent, JobState},
    manifest::Origin,
    run::{
        Blob, Directive, Gate, MessageLevel, Reply, Report, RunEvent, StepMetrics, metric::MetricName,
        processor::Processor,
    },
};
use attune_process::failpoint::Guard;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    adapters::{
        adapter_version::{self, NewVersion},
        base_model, manifest,
    },
    error::StoreError,
    jobs::{
        checkpoint::{self, NewCheckpoint},
        job::{self, JobError, Step},
        job_event::{self, Level},
        job_pause,
        loss::{self, Blame, Loss},
    },
    queue::{self, DispatchJob},
    runs::{
        placement,
        run::{self, Outcome, RunState},
        run_blob,
    },
    tenancy::{
        money,
        usage::{self, NodeTime},
    },
};

/// The run's row, locked.
struct Held {
    run_id: RunId,
    job_id: JobId,
    attempt: i32,
    resume: Option<CheckpointId>,
    job_state: JobState,
}

/// Applies a report: a heartbeat, and the events that were not applied before.
///
/// # Errors
/// [`StoreError::Stale`]: the lease is an older one, or the run has ended. [`StoreError::Gap`]: events are missing.
/// [`StoreError::NotGranted`]: files that the run has not uploaded. [`StoreError::NotFound`], [`StoreError::Illegal`],
/// [`StoreError::Database`].
#[tracing::instrument(skip(tx, report), fields(run.id = %run))]
pub async fn take(tx: &mut PgConnection, run: RunId, report: &Report) -> Result<Reply, StoreError> {
    let row = sqlx::query!(
        "select job_id, run_lease, state, next_sequence, attempt, resume_id from run where run_id = $1 for update",
        run.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("run"))?;
    let is_fenced = Guard::RunLease.is_on();
    if is_fenced && row.run_lease != report.run_lease {
        return Err(StoreError::Stale);
    }
    let first = i64::try_from(report.first_sequence).unwrap_or(i64::MAX);
    let end = first.saturating_add(report.events.len() as i64);
    if is_fenced && run::state(&row.state) == RunState::Ended {
        // The reply to the last report was lost: repeat it.
        let is_repeated = !report.events.is_empty() && end == row.next_sequence;
        return if is_repeated { Ok(Reply { directive: Directive::Stop }) } else { Err(StoreError::Stale) };
    }
    if first > row.next_sequence && !report.events.is_empty() {
        return Err(StoreError::Gap { expected: row.next_sequence, given: first });
    }
    let job = sqlx::query!("select state, run_id from job where job_id = $1 for update", row.job_id)
        .fetch_one(&mut *tx)
        .await?;
    if is_fenced && job.run_id != Some(run.uuid()) {
        return Err(StoreError::Stale);
    }
    let mut held = Held {
        run_id: run,
        job_id: JobId::new(row.job_id),
        attempt: row.attempt,
        resume: row.resume_id.map(CheckpointId::new),
        job_state: job::state(&job.state)?,
    };
    sqlx::query!(
        "update run set heartbeat_at = now(), next_sequence = greatest(next_sequence, $2) where run_id = $1",
        run.uuid(),
        if report.events.is_empty() { 0 } else { end },
    )
    .execute(&mut *tx)
    .await?;
    let repeated = if Guard::ReportSequence.is_on() { row.next_sequence.saturating_sub(first) } else { 0 };
    let taken = usize::try_from(repeated).unwrap_or(0);
    for event in report.events.iter().skip(taken) {
        apply(tx, &mut held, event).await?;
        if event.is_last() {
            break;
        }
    }
    let mut goes_on = matches!(held.job_state, JobState::Provisioning | JobState::Running);
    if goes_on && money::check(tx, held.job_id).await? {
        goes_on = false;
    }
    Ok(Reply { directive: if goes_on { Directive::Continue } else { Directive::Stop } })
}

async fn apply(tx: &mut PgConnection, held: &mut Held, event: &RunEvent) -> Result<(), StoreError> {
    match event {
        RunEvent::Started { total_steps, tokens_per_epoch, trainable_weights, processor } => {
            started(tx, held, *total_steps, processor.as_ref()).await?;
            let text = format!("Training {trainable_weights} weights on {tokens_per_epoch} tokens per epoch");
            job_event::message(tx, held.job_id, Level::Info, &text).await
        }
        RunEvent::Message { level, text, data } => {
            job_event::message_with(tx, held.job_id, level_of(*level), text, data).await
        }
        RunEvent::LearningRateFound { learning_rate, curve, reason } => {
            job::save_learning_rate(tx, held.job_id, *learning_rate).await?;
            let data = json!({ "learning_rate": learning_rate, "curve": curve });
            job_event::message_with(tx, held.job_id, Level::Info, reason, &data).await
        }
        RunEvent::Step(metrics) => stepped(tx, held, metrics).await,
        RunEvent::Evaluated { step, valid_loss, metrics } => {
            let text = format!("Step {step}: validation loss={valid_loss:.2}");
            let data = json!({ "step": step, "valid_loss": valid_loss, "full_valid_loss": valid_loss });
            job_event::metrics(tx, held.job_id, &text, with_named(data, metrics)).await
        }
        RunEvent::Checkpointed { step, files, train_loss, valid_loss } => {
            let (job_id, run_id) = (held.job_id, held.run_id);
            run_blob::check(tx, run_id, files).await?;
            let (step, train_loss, valid_loss) = (*step, *train_loss, *valid_loss);
            checkpoint::insert(tx, &NewCheckpoint { job_id, run_id, step, files, train_loss, valid_loss }).await?;
            let text = format!("Checkpoint created at step {step}");
            job_event::message(tx, job_id, Level::Info, &text).await
        }
        RunEvent::Published { files, chat_template_sha256, trained_tokens, best_step, peak_memory, gate } => {
            run_blob::check(tx, held.run_id, files).await?;
            measured(tx, held.run_id, peak_memory.to_i64()).await?;
            let (chat_template_sha256, trained_tokens) = (*chat_template_sha256, *trained_tokens);
            let (best_step, gate) = (*best_step, *gate);
            publish(tx, held, Publication { files, chat_template_sha256, trained_tokens, best_step, gate }).await
        }
        RunEvent::OutOfMemory { message, peak_memory } => {
            measured(tx, held.run_id, peak_memory.to_i64()).await?;
            lose(tx, held, &Loss::new(message, Blame::Memory)).await
        }
        RunEvent::Failed { code, message, passing: true, .. } => {
            let loss = Loss { code: code.clone(), reason: message.clone(), blame: Blame::Circumstances, cause: None };
            lose(tx, held, &loss).await
        }
        RunEvent::Failed { code, message, param, passing: false } => {
            run::end(tx, held.run_id, Outcome::Failed).await?;
            if code == "invalid_checkpoint" && gave_up_checkpoint(tx, held, message).await? {
                return Ok(());
            }
            let error = JobError { code: code.clone(), message: message.clone(), param: param.clone() };
            step(tx, held, &Step::failure(JobEvent::RunFailed, error)).await
        }
        RunEvent::Stopped { step: at } => stopped(tx, held, *at).await,
        // The events of an export, which has no run.
        RunEvent::Exporting { .. } | RunEvent::Exported { .. } => Err(StoreError::Stale),
    }
}

const fn level_of(level: MessageLevel) -> Level {
    match level {
        MessageLevel::Info => Level::Info,
        MessageLevel::Warn => Level::Warn,
    }
}

async fn step(tx: &mut PgConnection, held: &mut Held, step: &Step) -> Result<(), StoreError> {
    held.job_state = job::step_held(tx, held.job_id, held.run_id, step).await?;
    Ok(())
}

async fn lose(tx: &mut PgConnection, held: &mut Held, loss: &Loss) -> Result<(), StoreError> {
    if let Some(state) = loss::lost(tx, held.run_id, loss).await? {
        held.job_state = state;
    }
    Ok(())
}

async fn started(
    tx: &mut PgConnection,
    held: &mut Held,
    total_steps: u64,
    processor: Option<&Processor>,
) -> Result<(), StoreError> {
    if let Some(processor) = processor {
        placement::record_processor(tx, held.run_id, processor).await?;
    }
    sqlx::query!("update run set state = 'running' where run_id = $1", held.run_id.uuid()).execute(&mut *tx).await?;
    sqlx::query!("update job set total_steps = $2 where job_id = $1", held.job_id.uuid(), total_steps as i64)
        .execute(&mut *tx)
        .await?;
    if held.job_state != JobState::Provisioning {
        return Ok(()); // a cancel or a pause came first; the reply says stop
    }
    let message = match (held.attempt, held.resume.is_some()) {
        (1, _) => "Fine-tuning job started".to_owned(),
        (n, true) => format!("Fine-tuning job resumed from the last checkpoint (attempt {n})"),
        (n, false) => format!("Fine-tuning job started again (attempt {n})"),
    };
    step(tx, held, &Step::new(JobEvent::RunStarted, message)).await
}

async fn stepped(tx: &mut PgConnection, held: &Held, metrics: &StepMetrics) -> Result<(), StoreError> {
    sqlx::query!(
        "update job set steps_done = $2, top_step = greatest(top_step, $2),
             top_tokens = top_tokens + case when $2 > top_step then $3 else 0 end
         where job_id = $1",
        held.job_id.uuid(),
        metrics.step as i64,
        metrics.trained_tokens as i64,
    )
    .execute(&mut *tx)
    .await?;
    measured(tx, held.run_id, metrics.peak_memory.to_i64()).await?;
    timed(tx, held.run_id, metrics).await?;
    let tokens_per_second = metrics.tokens as f64 * 1000.0 / metrics.step_ms.max(1) as f64;
    let data = json!({
        "step": metrics.step,
        "total_steps": metrics.total_steps,
        "train_loss": metrics.train_loss,
        "tokens": metrics.tokens,
        "trained_tokens": metrics.trained_tokens,
        "tokens_per_second": tokens_per_second,
        "step_ms": metrics.step_ms,
        "peak_memory_bytes": metrics.peak_memory.0,
    });
    let text = format!("Step {}/{}: training loss={:.2}", metrics.step, metrics.total_steps, metrics.train_loss);
    job_event::metrics(tx, held.job_id, &text, with_named(data, &metrics.metrics)).await
}

/// Adds the named metrics to an event's `data`, an object.
fn with_named(mut data: Value, metrics: &BTreeMap<MetricName, f64>) -> Value {
    for (name, value) in metrics {
        data[name.name()] = json!(value);
    }
    data
}

async fn measured(tx: &mut PgConnection, run: RunId, peak: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "update run set measured_peak = greatest(coalesce(measured_peak, 0), $2) where run_id = $1",
        run.uuid(),
        peak,
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn timed(tx: &mut PgConnection, run: RunId, metrics: &StepMetrics) -> Result<(), StoreError> {
    sqlx::query!(
        "update run set steps = steps + 1, tokens = tokens + $2, step_ms = step_ms + $3 where run_id = $1",
        run.uuid(),
        metrics.tokens as i64,
        metrics.step_ms as i64,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// An adapter that a trainer has published.
struct Publication<'a> {
    files: &'a [Blob],
    chat_template_sha256: Option<Sha256>,
    trained_tokens: u64,
    /// The step of the adapter, if later ones were dropped.
    best_step: Option<u64>,
    gate: Gate,
}

/// Publishes the adapter version and ends job, run and node in the caller's transaction: the job has succeeded exactly
/// when its adapter exists.
async fn publish(tx: &mut PgConnection, held: &mut Held, published: Publication<'_>) -> Result<(), StoreError> {
    let Publication { files, chat_template_sha256, trained_tokens, best_step, gate } = published;
    let job = job::load(tx, held.job_id).await?;
    let training = manifest::training(tx, &job, held.run_id, trained_tokens, gate).await?;
    let told = format!(
        "Publish gate: served over the base in {}, the adapter's logits equal the trained one's to within {:.1e}",
        gate.quantization.in_words(),
        gate.logit_difference
    );
    job_event::message(tx, held.job_id, Level::Info, &told).await?;
    let new = NewVersion {
        project_id: job.project_id,
        adapter: adapter_version::lineage_of(tx, &job).await?,
        base: base_model::get(tx, job.base_model_id).await?,
        quantization: job.spec.quantization,
        job_id: Some(job.job_id),
        suffix: job.suffix,
        spec: job.spec.adapter,
        files: files.to_vec(),
        chat_template_sha256,
        origin: Origin::Job(Box::new(training)),
    };
    let name = adapter_version::insert(tx, new).await?.model_name;
    sqlx::query!("update job set trained_tokens = $2 where job_id = $1", held.job_id.uuid(), trained_tokens as i64)
        .execute(&mut *tx)
        .await?;
    run::end(tx, held.run_id, Outcome::Published).await?;
    if let Some(step) = best_step {
        usage::refund_run(tx, held.run_id, step, NodeTime::Nothing).await?;
    }
    job_event::message(tx, held.job_id, Level::Info, &format!("New fine-tuned model created: {name}")).await?;
    step(tx, held, &Step::new(JobEvent::AdapterPublished, "The job has successfully completed")).await
}

/// Handles a damaged checkpoint that the run should have resumed from. If there is an earlier one, the job is requeued
/// and resumes from that; `false`: there is none, or the job is being cancelled.
async fn gave_up_checkpoint(tx: &mut PgConnection, held: &mut Held, why: &str) -> Result<bool, StoreError> {
    let Some(damaged) = held.resume.filter(|_| held.job_state != JobState::Cancelling) else { return Ok(false) };
    if !checkpoint::give_up(tx, held.job_id, damaged).await? {
        return Ok(false);
    }
    let then = if held.job_state == JobState::Pausing { "is paused" } else { "is queued again" };
    let message = format!("{why}; the job {then} and resumes from the previous checkpoint");
    step(tx, held, &Step::new(JobEvent::RunLost, message)).await?;
    if held.job_state == JobState::Queued {
        queue::push(tx, &DispatchJob { job_id: held.job_id }).await?;
    } else {
        held.job_state = job_pause::requeue_preempted(tx, held.job_id).await?;
    }
    Ok(true)
}

/// Handles a stop. One due to a cancel ends the job, one due to a pause pauses it, and one for another job queues it
/// again. One without a request (the trainer's node is stopped) is an interruption: the job is queued again.
async fn stopped(tx: &mut PgConnection, held: &mut Held, at: u64) -> Result<(), StoreError> {
    let obeyed = match held.job_state {
        JobState::Cancelling => Some(format!("Fine-tuning job cancelled after step {at}")),
        JobState::Pausing => Some(format!("Fine-tuning job paused after step {at}")),
        _ => None,
    };
    if let Some(message) = obeyed {
        run::end(tx, held.run_id, Outcome::Stopped).await?;
        step(tx, held, &Step::new(JobEvent::RunStopped, message)).await?;
        held.job_state = job_pause::requeue_preempted(tx, held.job_id).await?;
        return Ok(());
    }
    let reason = format!("The trainer was interrupted after step {at}");
    lose(tx, held, &Loss::new(reason, Blame::Circumstances)).await
}
