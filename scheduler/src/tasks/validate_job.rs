//! `validating → queued`, or `→ failed` with the lines that are at fault: every row of the job's files is turned into
//! tokens with the base's own tokenizer, as the trainer will do it.

use std::{path::Path, sync::Arc};

use attune_domain::{
    id::{FileId, JobId, ProjectId},
    job::JobEvent,
};
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
use crate::{
    app::App,
    error::{SchedulerError, chain},
};

impl Handle for ValidateJob {
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let mut outcome = Ok(());
        let mut next = Some(self.job_id);
        // One after the other of a project's jobs: whoever finds the place taken leaves the job to whoever has it.
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

/// Checks one job's files, if it still wants that. What fails in the same way several times, or ends the process each
/// time, ends the job.
async fn validate(app: &App, job: &job::Job) -> Result<(), SchedulerError> {
    let begun = validation::begin(&mut *app.single().await?, job.job_id).await?;
    let Some(attempt) = begun else { return Ok(()) };
    if attempt > MAX_VALIDATION_ATTEMPTS {
        return settle(app, job, Err(given_up("the process that did it ended each time"))).await;
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
            tracing::warn!(job.id = %job.job_id, error = chain(&error), "the check of a job's files is given up");
            settle(app, job, Err(given_up(words(&error)))).await
        }
        done => done,
    }
}

/// Whether an error comes from elsewhere and will pass: the job is not at fault.
fn passes(error: &SchedulerError) -> bool {
    let refused = |error: &sqlx::Error| {
        // What was sent, not whether it came: data exceptions, broken constraints, limits of the program.
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

/// An error in words that say nothing of the platform's inside.
const fn words(error: &SchedulerError) -> &'static str {
    match error {
        SchedulerError::Thread(_) => "the check itself failed",
        SchedulerError::Store(StoreError::Digest { .. }) => "the content of a file is not what was uploaded",
        SchedulerError::Store(StoreError::NotFound(_)) => "something that it needs is not there any more",
        _ => "its outcome could not be written down",
    }
}

fn given_up(why: &str) -> JobError {
    let message = format!("the files could not be checked in {MAX_VALIDATION_ATTEMPTS} attempts: {why}");
    JobError { code: "validation_failed".into(), message, param: Some("training_file".into()) }
}

/// What is found out about the files.
struct Examined {
    facts: TokenFacts,
    /// What was done to their rows, for the job's events.
    notes: Vec<(Level, String)>,
}

/// The inner error is the user's.
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

/// Streams a file from the object store through a [`Scan`] on a thread of its own.
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
        (scan.finish(), base_model::hex(&hasher.finalize()))
    });
    let mut broken = None;
    loop {
        match body.try_next().await {
            Ok(Some(piece)) => {
                if pieces.send(piece).await.is_err() {
                    break; // the thread died; joining it says so
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
    let message = format!("{param}: the content of {id} is not there any more; upload it again");
    JobError { code: "file_not_found".into(), message, param: Some(param.to_owned()) }
}

/// Steps the job by the verdict. A job that was cancelled meanwhile stays so.
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
