//! The output and error files of a batch, written from the rows of its answers, in the order of the input.

use attune_domain::batch::BatchEvent;
use attune_store::{
    batches::batch::{self, Batch},
    files::{
        file::{self, NewFile},
        objects::upload_key,
    },
};
use uuid::Uuid;

use crate::{
    app::App,
    error::ApiError,
    files::staging::{Arrived, Incoming, Staged},
};

/// The number of answers per query.
const PAGE: i64 = 200;

/// A file in the object store that has no row yet.
struct Written {
    staged: Staged,
    arrived: Arrived,
    filename: String,
}

/// Writes both files, except empty ones, and ends the batch.
///
/// # Errors
/// [`ApiError::Stale`]: another worker holds the batch. [`ApiError::StorageRefused`], [`ApiError::Internal`].
pub async fn finish(app: &App, batch: &Batch, worker: Uuid, event: BatchEvent) -> Result<(), ApiError> {
    let output = write(app, batch, false).await?;
    let errors = write(app, batch, true).await?;
    let mut rows = [None, None];
    for (row, written) in rows.iter_mut().zip([output, errors]) {
        let Some(Written { staged, arrived, filename }) = written else { continue };
        staged.place(app, &arrived, "batch's answers").await?;
        *row = Some(NewFile {
            filename,
            purpose: "batch_output".into(),
            bytes: arrived.bytes,
            sha256: arrived.sha256,
            dataset: None,
            expires_after_seconds: batch.output_expires_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        });
    }
    let mut tx = app.platform().await?;
    let mut ids = [None, None];
    for (id, row) in ids.iter_mut().zip(rows) {
        let Some(row) = row else { continue };
        *id = Some(file::insert(&mut tx, batch.project_id, row).await?.file_id);
    }
    let [output, errors] = ids;
    batch::finish(&mut tx, (batch.batch_id, worker), event, output, errors).await?;
    Ok(tx.commit().await?)
}

async fn write(app: &App, batch: &Batch, is_error: bool) -> Result<Option<Written>, ApiError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&app.objects, &key, "batch's answers", u64::MAX);
    let mut last = 0;
    loop {
        let mut db = app.platform().await?;
        let page = batch::answers(&mut db, batch.batch_id, is_error, last, PAGE).await?;
        drop(db);
        let Some(end) = page.last() else { break };
        last = end.line;
        for answer in page {
            incoming.write(answer.answer.as_bytes()).await?;
            incoming.write(b"\n").await?;
        }
    }
    if last == 0 {
        incoming.abort().await;
        return Ok(None);
    }
    let (staged, arrived) = incoming.stage(&app.objects, key).await?;
    let kind = if is_error { "error" } else { "output" };
    Ok(Some(Written { staged, arrived, filename: format!("{}_{kind}.jsonl", batch.batch_id) }))
}
