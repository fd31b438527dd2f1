//! The report on a dataset: one pass over its rows, and one over the validation file's, on a thread of its own. A
//! report depends only on the files' content, the base model and the settings; the last reports are cached.

use std::{ops::ControlFlow, sync::Arc};

use attune_dataprep::{
    base_text,
    blob::read_blob,
    rows::{Stop, each_row},
};
use attune_domain::{
    id::{FileId, ProjectId},
    spec::{Method, Requested, TrainSpec, request::TrainerFields},
};
use attune_store::{
    adapters::{
        adapter::{self, Model},
        base_model::{self, BaseModel},
    },
    files::file::{self, File},
};
use attune_text::{
    model::TextModel,
    repeats::{Marks, Repeats, Seen},
    report::{Report, Reporter},
    rows::RowPolicy,
};
use bytes::Bytes;

use crate::{
    app::App,
    error::ApiError,
    files::{
        preview::no_dataset,
        report_cache::ReportKey,
        row_errors::{unopened, unread},
        text_places::TextPlace,
    },
    http::{pagination::Params, path_id::truncated},
    wire::report::{LeakageView, ReportView},
};

/// The parameters of a report.
#[derive(Debug)]
pub struct Asked {
    model: Option<String>,
    validation_file: Option<String>,
    requested: Requested,
}

impl Asked {
    /// Reads the query.
    ///
    /// # Errors
    /// A parameter is unknown, repeated or invalid.
    pub fn from_query(mut query: Params) -> Result<Self, ApiError> {
        let (model, validation_file) = (query.take("model")?, query.take("validation_file")?);
        let number = |text: String| {
            text.parse::<i64>().map_err(|_| {
                let shown = truncated(&text);
                ApiError::invalid("max_length", format!("Invalid 'max_length': '{shown}' is not a whole number."))
            })
        };
        let max_length = query.take("max_length")?.map(number).transpose()?;
        let train_on_prompt = match query.take("train_on_prompt")?.as_deref() {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(_) => {
                let message = "Invalid 'train_on_prompt': use true or false.";
                return Err(ApiError::invalid("train_on_prompt", message));
            }
        };
        query.done()?;
        let counting = [("max_length", max_length.is_some()), ("train_on_prompt", train_on_prompt.is_some())];
        if let Some((name, _)) = counting.into_iter().find(|(_, given)| *given && model.is_none()) {
            return Err(ApiError::invalid(
                name,
                format!("'{name}' requires 'model': without it, no tokens are counted."),
            ));
        }
        let trainer = TrainerFields { max_length, train_on_prompt, ..TrainerFields::default() };
        Ok(Self { model, validation_file, requested: Requested { trainer, ..Requested::default() } })
    }
}

/// Returns a report on the project's file.
///
/// # Errors
/// The file is not a dataset, the model or validation file does not exist, or a setting is invalid.
pub async fn make(app: &App, project: ProjectId, file: File, asked: Asked) -> Result<ReportView, ApiError> {
    let mut db = app.tenant(project).await?;
    let Some(dataset) = &file.dataset else { return Err(no_dataset("file_id", &file)) };
    let validation = match &asked.validation_file {
        Some(text) => Some(validation(&mut db, project, text).await?),
        None => None,
    };
    let base = match &asked.model {
        Some(name) => Some(base(&mut db, project, name).await?),
        None => None,
    };
    let mut counted = None;
    if let Some(base) = &base {
        let mut requested = asked.requested;
        let method = Method::for_format(dataset.format)
            .map_err(|wrong| ApiError::invalid("model", format!("{wrong}; leave 'model' out.")))?;
        requested.method = Some(method.name().to_owned());
        let spec = TrainSpec::check(&requested, dataset.rows, base.architecture.max_position_embeddings)?;
        let blobs = base_model::files(&mut db, base.base_model_id).await?;
        counted = Some((RowPolicy::new(&spec, chrono::Utc::now().timestamp()), blobs));
    }
    drop(db);
    let key = ReportKey {
        rows_sha256: file.rows_sha256(),
        validation_sha256: validation.as_ref().map(File::rows_sha256),
        counting: base.as_ref().zip(counted.as_ref()).map(|(base, (policy, _))| {
            // The time, which a chat template may print, does not invalidate a cached report.
            (base.base_model_id, RowPolicy { now: 0, ..*policy })
        }),
    };
    let ids = (file.file_id.to_string(), validation.as_ref().map(|file| file.file_id.to_string()));
    if let Some(report) = app.reports.find(&key) {
        return Ok(renamed(report, ids));
    }
    let max_length = counted.as_ref().map(|(policy, _)| policy.max_length);
    let reading = app.text.work(project, async |place| {
        let place = Arc::new(place);
        let counting = match counted {
            Some((policy, blobs)) => {
                let model = base_text::open(&app.objects, &blobs, place.clone()).await.map_err(unopened)?;
                Some((model, policy))
            }
            None => None,
        };
        read(app, (&file, validation.as_ref()), counting, place).await
    });
    let (report, leaked) = reading.await?;
    let mut view = ReportView::new(ids.0.clone(), base.map(|base| base.name).zip(max_length), &report);
    view.leakage =
        leaked.map(|(rows, repeats)| LeakageView { validation_file: String::new(), rows, repeats: (&repeats).into() });
    app.reports.insert(key, view.clone());
    Ok(renamed(view, ids))
}

/// Sets the file IDs of a cached report: the same content may have other IDs.
fn renamed(mut report: ReportView, (file, validation): (String, Option<String>)) -> ReportView {
    report.file_id = file;
    if let (Some(leakage), Some(validation)) = (&mut report.leakage, validation) {
        leakage.validation_file = validation;
    }
    report
}

async fn base(db: &mut sqlx::PgConnection, project: ProjectId, name: &str) -> Result<BaseModel, ApiError> {
    match adapter::resolve(db, project, name).await {
        Ok(Model::Base(base)) => Ok(base),
        Ok(Model::Tuned(_) | Model::Checkpoint(_)) => {
            Err(ApiError::unsupported("model", "A tuned model is not supported here. Use its base model."))
        }
        Err(error) => Err(ApiError::on_read(name)(error)),
    }
}

async fn validation(db: &mut sqlx::PgConnection, project: ProjectId, text: &str) -> Result<File, ApiError> {
    let missing = || {
        let shown = truncated(text);
        let message = format!("Invalid 'validation_file': there is no file '{shown}'.");
        ApiError::Invalid { param: Some("validation_file".into()), code: "file_not_found", message }
    };
    let id: FileId = text.parse().map_err(|_| missing())?;
    let file = match file::get(db, project, id).await {
        Err(attune_store::error::StoreError::NotFound(_)) => return Err(missing()),
        found => found?,
    };
    if file.dataset.is_none() { Err(no_dataset("validation_file", &file)) } else { Ok(file) }
}

/// A report, and the comparison with the validation file: the number of its rows, and those that are in both files.
type Read = (Report, Option<(u64, Repeats)>);

/// Reads both files.
async fn read(
    app: &App,
    (file, validation): (&File, Option<&File>),
    counting: Option<(TextModel, RowPolicy)>,
    place: Arc<TextPlace>,
) -> Result<Read, ApiError> {
    let slot = place.clone();
    let reading = read_blob(&app.objects, file.rows_sha256(), move |chunks| {
        let mut reporter = Reporter::new(counting.as_ref().map(|(model, policy)| (model, *policy)));
        each_row(chunks, slot.stop(), |line, row| {
            reporter.take(line, row);
            ControlFlow::Continue(())
        });
        reporter.finish()
    });
    let (report, seen) = reading.await.map_err(unread)?;
    let Some(validation) = validation else { return Ok((report, None)) };
    let comparing =
        read_blob(&app.objects, validation.rows_sha256(), move |chunks| compare(&seen, chunks, place.stop()));
    Ok((report, Some(comparing.await.map_err(unread)?)))
}

/// Returns the number of rows, and those among them that were seen. Blocking.
fn compare(seen: &Seen, chunks: impl IntoIterator<Item = Bytes>, stop: &Stop) -> (u64, Repeats) {
    let (mut rows, mut repeats) = (0, Repeats::default());
    each_row(chunks, stop, |line, row| {
        rows += 1;
        seen.find(line, Marks::of(row), &mut repeats);
        ControlFlow::Continue(())
    });
    (rows, repeats)
}
