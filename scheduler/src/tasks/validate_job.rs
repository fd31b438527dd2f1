//! Validation, `validating → queued`, or `→ failed` with the invalid lines: tokenizes every row of the job's files with
//! the base's own tokenizer, as the trainer will.

use std::{path::Path, sync::Arc};

use attune_domain::{
    digest::hex,
    id::{FileId, JobId, ProjectId},
    job::JobEvent,
};
use attune_process::error_chain::chain;
use attune_store::{
    adapters::base_model,
    error::StoreError,
    files::{file, objects::blob_key},
    jobs::{
        job::{self, JobError, Step, TokenFacts},
        job_event::{self, Level},
        validation::{self, MAX_VALIDATION_ATTEMPTS},
    },
    queue::{self, DispatchJob, ValidateJob},
};
use attune_text::{model::TextModel, rows::RowPolicy};
use sha2::{Digest, Sha256};

use super::{
    Handle,
    scan::{Scan, Scanned},
    text_folder,
};
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
    let file = (job.project_id, job.training_file_id);
    let Scanned { facts: training, mut notes } =
        match scan_file(app, model.clone(), file, ("training_file", policy)).await? {
            Ok(scanned) => scanned,
            Err(error) => return Ok(Err(error)),
        };
    let Some(validation_file_id) = job.validation_file_id else {
        return Ok(Ok(Examined { facts: TokenFacts { training, validation: None }, notes }));
    };
    let file = (job.project_id, validation_file_id);
    let validation = scan_file(app, model, file, ("validation_file", policy)).await?;
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

/// Streams a file from the object store through a [`Scan`] on a blocking thread.
async fn scan_file(
    app: &App,
    model: Arc<TextModel>,
    (project, id): (ProjectId, FileId),
    (param, policy): (&'static str, RowPolicy),
) -> Result<Result<Scanned, JobError>, SchedulerError> {
    let file = file::of_job(&mut *app.single().await?, project, id).await?;
    let mut body = match app.objects.get(&blob_key(file.rows_sha256())).await {
        Ok(body) => body,
        Err(StoreError::NotFound(_)) => return Ok(Err(gone(param, id))),
        Err(error) => return Err(error.into()),
    };
    let (pieces, mut inbox) = tokio::sync::mpsc::channel::<bytes::Bytes>(4);
    let scanning = tokio::task::spawn_blocking(move || {
        let mut scan = Scan::new(&model, param, policy);
        let mut hasher = Sha256::new();
        while let Some(piece) = inbox.blocking_recv() {
            hasher.update(&piece);
            scan.push(&piece);
        }
        (scan.finish(), hex(&hasher.finalize()))
    });
    let mut broken = None;
    loop {
        match body.try_next().await {
            Ok(Some(piece)) => {
                if pieces.send(piece).await.is_err() {
                    break; // the thread panicked; joining it returns the error
                }
            }
            Ok(None) => break,
            Err(cause) => {
                broken = Some(StoreError::object("get", &blob_key(file.rows_sha256()), cause));
                break;
            }
        }
    }
    drop(pieces);
    let (verdict, found) = scanning.await?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    if found != file.rows_sha256() {
        let wanted = file.rows_sha256().to_owned();
        return Err(StoreError::Digest { name: file.filename, wanted, found }.into());
    }
    Ok(verdict)
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
