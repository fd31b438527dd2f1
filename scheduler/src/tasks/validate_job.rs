//! Validation, `validating → queued`, or `→ failed` with the invalid lines: tokenizes every row of the job's files with
//! the base's own tokenizer, as the trainer will.

use std::{path::Path, sync::Arc, time::Duration};

use attune_dataprep::{
    blob::{ReadError, read_checked},
    refusal::{JobFile, Refused},
    scan::{Scanned, scan},
};
use attune_domain::{
    id::{FileId, JobId},
    job::JobEvent,
};
use attune_process::{error_chain::chain, failpoint::FailPoint, telemetry};
use attune_store::{
    adapters::base_model,
    error::StoreError,
    files::file,
    jobs::{
        job::{self, JobError, Step, TokenFacts},
        job_event::{self, Level},
        job_trace,
        validation::{self, Begun, MAX_VALIDATION_ATTEMPTS, MAX_VALIDATION_INTERRUPTIONS},
    },
    queue::{self, DispatchJob, ValidateJob},
};
use attune_text::{model::TextModel, rows::RowPolicy};
use bytes::Bytes;
use tracing::Instrument;

use super::{Handle, text_folder};
use crate::{app::App, error::SchedulerError, validations::Place};

/// The maximum length of the parts in which rows are read. Between two parts, a reader notices that its time is over.
const PART_BYTES: usize = 4 << 10;

impl Handle for ValidateJob {
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let mut outcome = Ok(());
        let (mut tried, mut next) = (Vec::new(), Some(self.job_id));
        // A project's jobs are validated one after the other: a task that finds the slot taken leaves its job to the
        // holder. Each then continues with the project whose last turn is the longest ago.
        while let Some(job_id) = next {
            tried.push(job_id);
            let mut conn = app.single().await?;
            let job = job::load(&mut conn, job_id).await?;
            let parent = job_trace::of(&mut conn, job_id).await?;
            drop(conn);
            if let Some(place) = app.validations.enter(job.project_id, job_id) {
                let span = tracing::info_span!("validate", job.id = %job_id);
                if let Some(parent) = parent {
                    telemetry::continue_trace(&span, &parent.to_string());
                }
                let done = Box::pin(validate(&app, &job, &place)).instrument(span).await;
                outcome = outcome.and(done);
            }
            let busy = app.validations.busy();
            next = app.validations.next(&validation::waiting(&mut *app.single().await?, &busy, &tried).await?);
        }
        outcome
    }
}

/// Validates one job's files, if it is still in validation. A failure that repeats, or a process that ends each time,
/// fails the job.
async fn validate(app: &App, job: &job::Job, place: &Place) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let begun = validation::begin(&mut tx, job.job_id).await?;
    tx.commit_at(FailPoint::ValidateBegin).await?;
    let Some(Begun { attempt, interruptions }) = begun else { return Ok(()) };
    if attempt > MAX_VALIDATION_ATTEMPTS {
        return settle(app, job, Err(given_up("the validating process ended each time"))).await;
    }
    if interruptions > MAX_VALIDATION_INTERRUPTIONS {
        return settle(app, job, Err(interrupted())).await;
    }
    let done = match examine_in_time(app, job, place).await {
        Ok(verdict) => settle(app, job, verdict).await,
        Err(error) => Err(error),
    };
    match done {
        Err(error) if attempt == MAX_VALIDATION_ATTEMPTS && !passes(&error) => {
            tracing::warn!(job.id = %job.job_id, error = chain(&error), "a validation failed repeatedly");
            settle(app, job, Err(given_up(words(&error)))).await
        }
        Err(error) => {
            let mut tx = app.begin().await?;
            match passes(&error) {
                true => validation::take_back(&mut tx, job.job_id).await?,
                false => validation::end(&mut tx, job.job_id).await?,
            }
            tx.commit_at(FailPoint::ValidateTakeBack).await?;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Examines a job's files within the time limit. The thread that reads rows stops soon after it.
async fn examine_in_time(app: &App, job: &job::Job, place: &Place) -> Result<Verdict, SchedulerError> {
    let limit = app.validations.limit();
    match tokio::time::timeout(limit, examine(app, job, place)).await {
        Ok(examined) => examined,
        Err(_) => {
            place.stop().set();
            Ok(Err(too_slow(limit)))
        }
    }
}

/// Returns whether an error is transient and not the job's fault.
fn passes(error: &SchedulerError) -> bool {
    let refused = |error: &sqlx::Error| {
        // Errors of the statement's content: data exceptions, integrity constraints, program limits (SQLSTATE classes).
        let code = error.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
    };
    match error {
        SchedulerError::Store(StoreError::Database(error)) => !refused(error),
        SchedulerError::Store(StoreError::Object { .. } | StoreError::Queue(_)) | SchedulerError::Provider(_) => true,
        SchedulerError::File { .. } => true,
        SchedulerError::Store(_) | SchedulerError::Thread(_) => false,
    }
}

/// Returns a description of the error without the platform's internals.
const fn words(error: &SchedulerError) -> &'static str {
    match error {
        SchedulerError::Thread(_) => "the check itself failed",
        SchedulerError::Store(StoreError::Digest { .. }) => "the content of a file is not what was uploaded",
        SchedulerError::Store(StoreError::NotFound(_)) => "a file or model that it needs was deleted",
        _ => "its outcome could not be stored",
    }
}

fn given_up(why: &str) -> JobError {
    let message = format!("the files could not be checked in {MAX_VALIDATION_ATTEMPTS} attempts: {why}");
    validation_error("validation_failed", message)
}

fn interrupted() -> JobError {
    let message = format!(
        "the files could not be checked: the scheduler ended during more than {MAX_VALIDATION_INTERRUPTIONS} checks in \
         a row"
    );
    validation_error("validation_failed", message)
}

fn too_slow(limit: Duration) -> JobError {
    let minutes = limit.as_secs() / 60;
    let message = format!(
        "the check of the files took more than {minutes} minutes. Use smaller files, or a base model with a simpler \
         chat template."
    );
    validation_error("validation_timeout", message)
}

fn validation_error(code: &str, message: String) -> JobError {
    JobError { code: code.into(), message, param: Some("training_file".into()) }
}

/// The result for valid files.
struct Examined {
    facts: TokenFacts,
    /// Changes that the policy made to rows, for the job's events.
    notes: Vec<(Level, String)>,
}

/// The outcome of a validation. The error is the user's.
type Verdict = Result<Examined, JobError>;

async fn examine(app: &App, job: &job::Job, place: &Place) -> Result<Verdict, SchedulerError> {
    let base = base_model::get(&mut *app.single().await?, job.base_model_id).await?;
    let folder = text_folder::ensure(app, &base).await?;
    let model = match tokio::task::spawn_blocking(move || open(&folder)).await? {
        Ok(model) => Arc::new(model.with_kwargs(job.spec.chat_template_kwargs.clone())),
        Err(error) => return Ok(Err(error)),
    };
    let policy = RowPolicy::new(&job.spec, job.created_at.timestamp());
    let check = Check { app, job, model, policy, place };
    let Scanned { facts: training, mut notes } = match check.file(JobFile::Training, job.training_file_id).await? {
        Ok(scanned) => scanned,
        Err(error) => return Ok(Err(error)),
    };
    let Some(validation_file_id) = job.validation_file_id else {
        return Ok(Ok(Examined { facts: TokenFacts { training, validation: None }, notes }));
    };
    let validation = check.file(JobFile::Validation, validation_file_id).await?;
    Ok(validation.map(|scanned| {
        notes.extend(scanned.notes);
        Examined { facts: TokenFacts { training, validation: Some(scanned.facts) }, notes }
    }))
}

fn open(folder: &Path) -> Result<TextModel, JobError> {
    TextModel::open(folder).map_err(|error| JobError {
        code: "invalid_base_model".into(),
        message: format!("the base model's tokenizer cannot be used: {}", chain(&error)),
        param: Some("model".into()),
    })
}

/// The check of a job's files.
struct Check<'a> {
    app: &'a App,
    job: &'a job::Job,
    model: Arc<TextModel>,
    policy: RowPolicy,
    place: &'a Place,
}

impl Check<'_> {
    /// Reads all rows of a file. The inner error is the user's.
    async fn file(&self, which: JobFile, id: FileId) -> Result<Result<Scanned, JobError>, SchedulerError> {
        let file = file::of_job(&mut *self.app.single().await?, self.job.project_id, id).await?;
        let (model, policy, place) = (self.model.clone(), self.policy, self.place.clone());
        let reading = read_checked(&self.app.objects, &file.filename, file.rows_sha256(), move |chunks| {
            scan(&model, policy, which, chunks.flat_map(parts).take_while(|_| !place.stop().is_set()))
        });
        match reading.await {
            Ok(scanned) => Ok(scanned.map_err(refused)),
            Err(ReadError::Open(StoreError::NotFound(_))) => Ok(Err(gone(which.param(), id))),
            Err(ReadError::Open(error) | ReadError::Broken(error)) => Err(error.into()),
            Err(ReadError::Thread(error)) => Err(error.into()),
        }
    }
}

/// Splits a chunk into parts of at most [`PART_BYTES`].
fn parts(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!chunk.is_empty()).then(|| chunk.split_to(PART_BYTES.min(chunk.len()))))
}

fn refused(refused: Refused) -> JobError {
    let Refused { code, param, reason } = refused;
    JobError { code: code.into(), message: format!("{param}: {reason}"), param: Some(param.to_owned()) }
}

fn gone(param: &str, id: FileId) -> JobError {
    let message = format!("{param}: the content of {id} no longer exists. Upload it again.");
    JobError { code: "file_not_found".into(), message, param: Some(param.to_owned()) }
}

/// Applies the verdict to the job. A job that was cancelled meanwhile stays cancelled.
async fn settle(app: &App, job: &job::Job, verdict: Verdict) -> Result<(), SchedulerError> {
    let mut tx = app.begin().await?;
    let stepped = match verdict {
        Ok(Examined { facts, notes }) => {
            for (level, note) in &notes {
                job_event::message(&mut tx, job.job_id, *level, note).await?;
            }
            job::save_facts(&mut tx, job.job_id, &facts, job.spec.total_steps(facts.training.rows)).await?;
            accept(&mut tx, job.job_id).await
        }
        Err(error) => job::step(&mut tx, job.job_id, &Step::failure(JobEvent::DataRefused, error)).await.map(drop),
    };
    match stepped {
        Ok(()) => Ok(tx.commit_at(FailPoint::ValidateSettle).await?),
        Err(StoreError::Illegal(_)) => Ok(tx.rollback().await?),
        Err(error) => Err(error.into()),
    }
}

async fn accept(tx: &mut sqlx::PgConnection, job_id: JobId) -> Result<(), StoreError> {
    let step = Step::new(JobEvent::DataAccepted, "Files validated, moving job to queued state");
    job::step(tx, job_id, &step).await?;
    queue::push(tx, &DispatchJob { job_id }).await
}

#[cfg(test)]
mod tests {
    use attune_text::row_stats::RowsError;

    use super::*;

    #[test]
    fn a_chunk_is_read_in_parts_so_that_a_stop_is_noticed() {
        let lengths = |chunk: usize| parts(Bytes::from(vec![b'a'; chunk])).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lengths(0), [0; 0]);
        assert_eq!(lengths(2 * PART_BYTES + 1), [PART_BYTES, PART_BYTES, 1]);
    }

    #[test]
    fn a_refused_file_is_the_jobs_error() {
        let error = RowsError::NoneLeft { count: 1, max_length: 4 };
        let found = refused(Refused::file(JobFile::Training, &error));
        assert_eq!((found.code.as_str(), found.param.as_deref()), ("row_too_long", Some("training_file")));
        assert_eq!(found.message, format!("training_file: {error}"));
    }
}
