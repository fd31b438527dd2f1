//! The result file of a succeeded job: its metrics step by step, for its user to download.
//!
//! Source of the columns: "Analyzing your fine-tuned model" in OpenAI's fine-tuning guide.

use std::fmt::Write;

use attune_domain::{
    bytes::Bytes,
    id::{File as FileKind, FileId, JobId},
};
use sqlx::PgConnection;

use crate::{error::StoreError, ids};

/// The CSV header.
const HEADINGS: &str = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy";

/// The purpose of a result file.
pub const PURPOSE: &str = "fine-tune-results";

/// The name of a result file.
pub const FILENAME: &str = "step_metrics.csv";

/// Returns a job's metrics as CSV. A repeated step has its last values; a value that was not measured is empty.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn csv(conn: &mut PgConnection, job: JobId) -> Result<String, StoreError> {
    let rows = sqlx::query!(
        r#"select (data->>'step')::bigint as "step!",
             (array_agg((data->>'train_loss')::float8 order by sequence desc)
                 filter (where data ? 'train_loss'))[1] as train_loss,
             (array_agg((data->>'train_mean_token_accuracy')::float8 order by sequence desc)
                 filter (where data ? 'train_mean_token_accuracy'))[1] as train_accuracy,
             (array_agg((data->>'valid_loss')::float8 order by sequence desc)
                 filter (where data ? 'valid_loss'))[1] as valid_loss,
             (array_agg((data->>'valid_mean_token_accuracy')::float8 order by sequence desc)
                 filter (where data ? 'valid_mean_token_accuracy'))[1] as valid_accuracy
         from job_event where job_id = $1 and type = 'metrics' and data ? 'step'
         group by 1 order by 1"#,
        job.uuid(),
    )
    .fetch_all(conn)
    .await?;
    let mut text = format!("{HEADINGS}\n");
    for row in rows {
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let cells = [row.train_loss, row.train_accuracy, row.valid_loss, row.valid_accuracy].map(cell);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{},{}", row.step, cells.join(","));
    }
    Ok(text)
}

/// Creates a job's result file with this digest. The content must already be stored.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn name(tx: &mut PgConnection, job: JobId, sha256: &str, bytes: Bytes) -> Result<FileId, StoreError> {
    let id: FileId = ids::id::<FileKind>();
    sqlx::query!(
        "with made as (
             insert into file (file_id, project_id, filename, purpose, bytes, sha256)
             select $2, project_id, $3, $4, $5, $6 from job where job_id = $1)
         update job set result_file_id = $2 where job_id = $1",
        job.uuid(),
        id.uuid(),
        FILENAME,
        PURPOSE,
        bytes.to_i64(),
        sha256,
    )
    .execute(tx)
    .await?;
    Ok(id)
}
