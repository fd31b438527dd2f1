//! A job's events: as a list, newest first, or as a stream of new events, which ends after the job does.
//!
//! A stream queries the rows once a second, so its cost is bounded: one index lookup, and at most `MOST_STREAMS`
//! streams. Each event carries its ID; a client that reconnects with the last ID it received (`Last-Event-ID`) misses
//! no event and receives none twice, since sequence numbers are assigned in order (`job_event.sequence`).

use std::{convert::Infallible, sync::Arc, time::Duration};

use attune_domain::{
    access::{Role, Scope},
    id::{JobEvent as JobEventKind, JobEventId, JobId, ProjectId},
    job::JobState,
};
use attune_store::{
    jobs::{
        job,
        job_event::{self, JobEventRow},
    },
    version::Thing,
};
use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use sqlx::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{
        pagination::{List, Params},
        path_id::parse_id,
    },
    policy::Policy,
    wire::{job_view::JobEventView, query::ServerSentEvent},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] =
    &[Policy::project("list_job_events", Scope::JobsRead, Role::Viewer).names(Thing::Job)];

/// The maximum number of concurrent streams, of all callers together.
pub const MOST_STREAMS: usize = 512;

/// The interval between two queries of a stream.
const LOOK: Duration = Duration::from_secs(1);

/// The interval between two comments that keep an idle connection open.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The maximum number of events in one query.
const PART: i64 = 500;

/// List the events of a fine-tuning job, newest first, or stream them, oldest first.
///
/// With `stream=true` the response is `text/event-stream`: past events, then new ones until the job has ended, each
/// with the object in `data` and its ID in `id`. A client that was disconnected sends the last ID as `Last-Event-ID`,
/// or as `after`, and receives the events after it.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/events", tag = "Fine-tuning",
    operation_id = "list_job_events",
    params(
        ("job_id" = String, Path),
        ("after" = Option<String>, Query, pattern = "^ftevent-[0-9a-f]{32}$",
            description = "Return events after this ID."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000,
            description = "Page size. Defaults to 20. Not used with `stream`."),
        ("stream" = Option<bool>, Query, description = "If `true`, streams server-sent events."),
        ("Last-Event-ID" = Option<String>, Header,
            description = "With `stream`: the same as `after`, and takes precedence over it."),
    ),
    responses((status = 200, description = "A list of events, or a stream of events.",
        content((List<JobEventView> = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = "4XX", body = ErrorBody)))]
pub async fn events(
    State(app): State<App>,
    Caller(holder): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    mut query: Params,
) -> Result<Response, ApiError> {
    let is_stream = query.truth("stream")?;
    let mut after = query.after::<JobEventKind>()?;
    let limit = if is_stream { PART } else { query.limit(20, 1000)? };
    query.done()?;
    if is_stream && let Some(last) = last_event_id(&headers)? {
        after = Some(last);
    }
    let mut db = app.tenant(holder.project_id).await?;
    let job = job::get(&mut db, holder.project_id, parse_id(&id)?).await.map_err(ApiError::on_read(id))?;
    let place = place(&mut db, (holder.project_id, job.job_id), after).await?;
    if is_stream {
        drop(db);
        let watched = Watched { app, project: holder.project_id, job: job.job_id, after: place.unwrap_or(0) };
        return stream(watched);
    }
    let events = job_event::list(&mut db, holder.project_id, job.job_id, place, limit + 1).await?;
    let views = events.into_iter().map(JobEventView::from).collect();
    Ok(Json(List::cut(views, limit, |event: &JobEventView| event.id.clone())).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<JobEventId>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e| ApiError::invalid("Last-Event-ID", format!("Invalid 'Last-Event-ID': {e}.")))
}

/// Returns the sequence number of the event after which a list begins.
async fn place(
    db: &mut PgConnection,
    (project, job): (ProjectId, JobId),
    after: Option<JobEventId>,
) -> Result<Option<i64>, ApiError> {
    let Some(event) = after else { return Ok(None) };
    let place = job_event::place(db, project, job, event).await?;
    place
        .map(Some)
        .ok_or_else(|| ApiError::invalid("after", format!("Invalid 'after': the job has no event '{event}'.")))
}

/// A job whose events a client streams.
struct Watched {
    app: App,
    project: ProjectId,
    job: JobId,
    /// The sequence number of the last event that was sent.
    after: i64,
}

fn stream(mut watched: Watched) -> Result<Response, ApiError> {
    let busy = |_| ApiError::Busy {
        message: format!("{MOST_STREAMS} event streams are open, which is the maximum. List the events instead."),
        retry_after_seconds: 10,
    };
    let place: OwnedSemaphorePermit = Arc::clone(&watched.app.streams).try_acquire_owned().map_err(busy)?;
    let (outbox, events) = mpsc::channel(64);
    let stopping = watched.app.stopping.clone();
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = outbox.closed() => {}
            // The client reconnects, to this process or another, with the last event ID that it has.
            () = stopping.cancelled() => {}
            told = watched.send_events(&outbox) => if let Err(error) = told { error.log() },
        }
    });
    let alive = KeepAlive::new().interval(HEARTBEAT).text("nothing new");
    Ok(Sse::new(ReceiverStream::new(events)).keep_alive(alive).into_response())
}

impl Watched {
    /// Sends past and new events, until the job has ended and all of them were sent.
    async fn send_events(&mut self, outbox: &mpsc::Sender<Result<Event, Infallible>>) -> Result<(), ApiError> {
        loop {
            let (has_ended, part) = self.look().await?;
            let is_all = part.len() < PART as usize;
            for row in part {
                self.after = row.sequence;
                if outbox.send(Ok(event(row)?)).await.is_err() {
                    return Ok(());
                }
            }
            match (is_all, has_ended) {
                (true, true) => return Ok(()),
                (true, false) => tokio::time::sleep(LOOK).await,
                (false, _) => {}
            }
        }
    }

    /// Reads the state before the events: a job that has ended gets no more events, so none is missed.
    async fn look(&self) -> Result<(bool, Vec<JobEventRow>), ApiError> {
        let mut db = self.app.tenant(self.project).await?;
        let state = job::get(&mut db, self.project, self.job).await?.state;
        let part = job_event::following(&mut db, self.project, self.job, self.after, PART).await?;
        Ok((JobState::is_final(state), part))
    }
}

fn event(row: JobEventRow) -> Result<Event, ApiError> {
    let id = row.job_event_id.to_string();
    Event::default().id(id).json_data(JobEventView::from(row)).map_err(ApiError::internal)
}
