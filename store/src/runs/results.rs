//! The result file of a succeeded job: its metrics step by step, for its user to download.
//!
//! Source of the columns: "Analyzing your fine-tuned model" in OpenAI's fine-tuning guide.

use std::{collections::BTreeMap, fmt::Write};

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    id::{File as FileKind, FileId, JobId, ProjectId},
    run::metric::result_columns,
};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{error::StoreError, ids, jobs::job_event};

/// The purpose of a result file.
pub const PURPOSE: &str = "fine-tune-results";

/// The name of a result file.
pub const FILENAME: &str = "step_metrics.csv";

/// The number of events in one query.
const PAGE: i64 = 500;

/// Returns the metrics of a project's job as CSV. A repeated step has its last values; a value that was not measured is
/// empty.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn csv(conn: &mut PgConnection, project: ProjectId, job: JobId) -> Result<String, StoreError> {
    let (mut table, mut after) = (Table::default(), 0);
    loop {
        let page = job_event::following(conn, project, job, after, PAGE).await?;
        for data in page.iter().filter(|event| event.kind == "metrics").filter_map(|event| event.data.as_ref()) {
            table.add(data);
        }
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => after = last.sequence,
            _ => return Ok(table.csv()),
        }
    }
}

/// The values of each step, one for each of [`result_columns`].
#[derive(Debug, Default)]
struct Table(BTreeMap<i64, Vec<Option<f64>>>);

impl Table {
    /// Adds the metrics of an event. They replace those that an earlier event of the same step has.
    fn add(&mut self, data: &Value) {
        let Some(step) = data["step"].as_i64() else { return };
        let columns = result_columns();
        let cells = self.0.entry(step).or_insert_with(|| vec![None; columns.len()]);
        for (cell, column) in cells.iter_mut().zip(columns) {
            if let Some(value) = data.get(column.key) {
                *cell = value.as_f64();
            }
        }
    }

    fn csv(&self) -> String {
        let headings = result_columns().map(|column| column.heading).join(",");
        let mut text = format!("step,{headings}\n");
        for (step, cells) in &self.0 {
            let cells: Vec<_> =
                cells.iter().map(|cell| cell.map_or(String::new(), |value| value.to_string())).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{step},{}", cells.join(","));
        }
        text
    }
}

/// Creates a job's result file with this digest. The content must already be stored.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn name(tx: &mut PgConnection, job: JobId, sha256: Sha256, bytes: Bytes) -> Result<FileId, StoreError> {
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
        sha256.to_string(),
    )
    .execute(tx)
    .await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_has_its_last_values_and_nothing_where_none_was_measured() {
        let mut table = Table::default();
        for data in [
            json!({"step": 10, "train_loss": 0.5, "train_mean_token_accuracy": 0.7, "grad_norm": 1.0}),
            json!({"step": 9, "train_loss": 0.75}),
            json!({"step": 10, "train_loss": 0.1, "train_mean_token_accuracy": null}),
            json!({"step": 10, "valid_loss": 1e-7, "valid_mean_token_accuracy": 1.0}),
            json!({"train_loss": 7.0}),
        ] {
            table.add(&data);
        }
        let want =
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n9,0.75,,,\n10,0.1,,0.0000001,1\n";
        assert_eq!(table.csv(), want);
    }
}
