//! Validation, `validating → queued`, or `→ failed` with the invalid lines: tokenizes every row of the job's files with
//! the base's own tokenizer, as the trainer will.

use std::{path::Path, sync::Arc};

use attune_dataprep::{
    blob::{ReadError, read_checked},
    refusal::{JobFile, Refused},
    scan::{Scanned, scan},
};
use attune_domain::{
    id::{FileId, JobId},
    job::JobEvent,
};
use attune_process::error_chain::chain;
use attune_store::{
    adapters::base_model,
    error::StoreError,
    files::file,
    jobs::{
        job::{self, JobError, Step, TokenFacts},
        job_event::{self, Level},
        validation::{self, MAX_VALIDATION_ATTEMPTS},
    },
    queue::{self, DispatchJob, ValidateJob},
};
use attune_text::{model::TextModel, rows::RowPolicy};

use super::{Handle, text_folder};
use crate::{app::App, error::SchedulerError};

impl Handle for ValidateJob {
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let mut outcome = Ok(());
        let mut next = Some(self.job_id);
        // A project's jobs are validated one after the other: a task that finds the slot taken leaves its job to the
        // holder.
        while let Some(job_id) = next {
            let mut conn = app.single().await?;
            let job = job::load(&mut conn, job_id).await?;
            drop(conn);
            let Some(place) = app.validations.enter(job.project_id, job_id) else { break };
            let done = validate(&app, &job).await;
            drop(place);
            outcome = outcome.and(done);
            next = validation::next(&mut *app.single().await?, job.project_id, job_id).await?;
        }
        outcome
    }
}

/// Validates one job's files, if it is still in validation. A failure that repeats, or a process that ends each time,
/// fails the job.
async fn validate(app: &App, job: &job::Job) -> Result<(), SchedulerError> {
    let begun = validation::begin(&mut *app.single().await?, job.job_id).await?;
    let Some(attempt) = begun else { return Ok(()) };
    if attempt > MAX_VALIDATION_ATTEMPTS {
        return settle(app, job, Err(given_up("the validating process ended each time"))).await;
    }
    let done = match examine(app, job).await {
        Ok(verdict) => settle(app, job, verdict).await,
        Err(error) => Err(error),
    };
    match done {
        Err(error) if passes(&error) => {
            validation::take_back(&mut *app.single().await?, job.job_id).await?;
            Err(error)
        }
        Err(error) if attempt == MAX_VALIDATION_ATTEMPTS => {
            tracing::warn!(job.id = %job.job_id, error = chain(&error), "a validation failed repeatedly");
            settle(app, job, Err(given_up(words(&error)))).await
        }
        done => done,
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
    JobError { code: "validation_failed".into(), message, param: Some("training_file".into()) }
}

/// The result for valid files.
struct Examined {
    facts: TokenFacts,
    /// Changes that the policy made to rows, for the job's events.
    notes: Vec<(Level, String)>,
}

/// The outcome of a validation. The error is the user's.
type Verdict = Result<Examined, JobError>;

async fn examine(app: &App, job: &job::Job) -> Result<Verdict, SchedulerError> {
    let base = base_model::get(&mut *app.single().await?, job.base_model_id).await?;
    let folder = text_folder::ensure(app, &base).await?;
    let model = match tokio::task::spawn_blocking(move || open(&folder)).await? {
        Ok(model) => Arc::new(model.with_kwargs(job.spec.chat_template_kwargs.clone())),
        Err(error) => return Ok(Err(error)),
    };
    let policy = RowPolicy::new(&job.spec, job.created_at.timestamp());
    let check = Check { app, job, model, policy };
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
}

impl Check<'_> {
    /// Reads all rows of a file. The inner error is the user's.
    async fn file(&self, which: JobFile, id: FileId) -> Result<Result<Scanned, JobError>, SchedulerError> {
        let file = file::of_job(&mut *self.app.single().await?, self.job.project_id, id).await?;
        let (model, policy) = (self.model.clone(), self.policy);
        let reading = read_checked(&self.app.objects, &file.filename, file.rows_sha256(), move |chunks| {
            scan(&model, policy, which, chunks)
        });
        match reading.await {
            Ok(scanned) => Ok(scanned.map_err(refused)),
            Err(ReadError::Open(StoreError::NotFound(_))) => Ok(Err(gone(which.param(), id))),
            Err(ReadError::Open(error) | ReadError::Broken(error)) => Err(error.into()),
            Err(ReadError::Thread(error)) => Err(error.into()),
        }
    }
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
        Ok(()) => Ok(tx.commit().await?),
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
    fn a_refused_file_is_the_jobs_error() {
        let error = RowsError::NoneLeft { count: 1, max_length: 4 };
        let found = refused(Refused::file(JobFile::Training, &error));
        assert_eq!((found.code.as_str(), found.param.as_deref()), ("row_too_long", Some("training_file")));
        assert_eq!(found.message, format!("training_file: {error}"));
    }
}
