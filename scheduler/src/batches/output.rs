//! The output and error files of a batch, written from the rows of its answers, in the order of the input.

use attune_domain::batch::{BatchEvent, Defect};
use attune_inference::context::Inference;
use attune_process::failpoint::FailPoint;
use attune_store::{
    batches::{
        batch::{self, Batch, BatchEnd},
        batch_answer,
    },
    files::{
        file::{self, NewFile},
        objects::upload_key,
        staging::{Arrived, Incoming, Staged},
    },
};
use uuid::Uuid;

use crate::batches::error::BatchError;

/// The number of answers per query.
const PAGE: i64 = 200;

/// A file in the object store that has no row yet.
struct Written {
    staged: Staged,
    arrived: Arrived,
    filename: String,
}

/// The way in which a batch ends.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    /// The event.
    pub(crate) event: BatchEvent,
    /// The reason, if it failed.
    pub(crate) defect: Option<Defect>,
}

impl From<BatchEvent> for Ending {
    fn from(event: BatchEvent) -> Self {
        Self { event, defect: None }
    }
}

/// Writes both files, except empty ones, and ends the batch.
///
/// # Errors
/// [`BatchError::Stale`]: another worker holds the batch. [`BatchError::Step`]: it was cancelled in between.
/// [`BatchError::Failed`].
pub(crate) async fn finish(
    inference: &Inference,
    batch: &Batch,
    worker: Uuid,
    Ending { event, defect }: Ending,
) -> Result<(), BatchError> {
    let output = write(inference, batch, false).await?;
    let errors = write(inference, batch, true).await?;
    let mut rows = [None, None];
    for (row, written) in rows.iter_mut().zip([output, errors]) {
        let Some(Written { staged, arrived, filename }) = written else { continue };
        staged.place(&inference.db, &arrived, "batch's answers").await?;
        *row = Some(NewFile {
            filename,
            purpose: "batch_output".into(),
            bytes: arrived.bytes,
            sha256: arrived.sha256,
            dataset: None,
            expires_after_seconds: batch.output_expires_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        });
    }
    let mut tx = inference.platform().await?;
    let mut ids = [None, None];
    for (id, row) in ids.iter_mut().zip(rows) {
        let Some(row) = row else { continue };
        *id = Some(file::insert(&mut tx, batch.project_id, row).await?.file_id);
    }
    let [output, errors] = ids;
    batch::finish(&mut tx, batch.batch_id, worker, &BatchEnd { event, output, errors, defect }).await?;
    Ok(tx.commit_at(FailPoint::BatchFinish).await?)
}

async fn write(inference: &Inference, batch: &Batch, is_error: bool) -> Result<Option<Written>, BatchError> {
    let key = upload_key();
    let mut incoming = Incoming::begin(&inference.objects, &key, "batch's answers", u64::MAX);
    let mut last = 0;
    loop {
        let mut db = inference.platform().await?;
        let page = batch_answer::answers(&mut db, batch.batch_id, is_error, last, PAGE).await?;
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
    let (staged, arrived) = incoming.stage(&inference.objects, key).await?;
    let kind = if is_error { "error" } else { "output" };
    Ok(Some(Written { staged, arrived, filename: format!("{}_{kind}.jsonl", batch.batch_id) }))
}
