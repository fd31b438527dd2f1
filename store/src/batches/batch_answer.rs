//! The results of a batch's requests. Each is a row until the batch's files are written.

use attune_domain::id::BatchId;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::StoreError;

/// The result of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchResult {
    /// The line number in the input file.
    pub line: i32,
    /// True if it belongs in the error file.
    pub is_error: bool,
    /// The line of the output or error file, without its line feed.
    pub answer: String,
}

/// Stores a result, once per line; a second one for the same line is dropped. Returns whether it was stored.
///
/// # Errors
/// [`StoreError::Stale`]: another worker holds the batch. [`StoreError::Database`].
pub async fn answer(
    tx: &mut PgConnection,
    id: BatchId,
    worker: Uuid,
    answer: &BatchResult,
) -> Result<bool, StoreError> {
    sqlx::query!("select from batch where batch_id = $1 and worker = $2 for update", id.uuid(), worker)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(StoreError::Stale)?;
    let new = sqlx::query!(
        "insert into batch_answer (batch_id, line, is_error, answer) values ($1, $2, $3, $4)
         on conflict (batch_id, line) do nothing",
        id.uuid(),
        answer.line,
        answer.is_error,
        answer.answer,
    )
    .execute(&mut *tx)
    .await?;
    let is_new = new.rows_affected() == 1;
    if is_new {
        sqlx::query!(
            "update batch set completed = completed + case when $2 then 0 else 1 end,
                 failed = failed + case when $2 then 1 else 0 end, failures = 0 where batch_id = $1",
            id.uuid(),
            answer.is_error,
        )
        .execute(tx)
        .await?;
    }
    Ok(is_new)
}

/// Returns the lines that have a result, in order.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn answered(db: &mut PgConnection, id: BatchId) -> Result<Vec<i32>, StoreError> {
    Ok(sqlx::query_scalar!("select line from batch_answer where batch_id = $1 order by line", id.uuid())
        .fetch_all(db)
        .await?)
}

/// Returns the next results for one of the two files, by line: at most `limit` after `after`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn answers(
    db: &mut PgConnection,
    id: BatchId,
    is_error: bool,
    after: i32,
    limit: i64,
) -> Result<Vec<BatchResult>, StoreError> {
    Ok(sqlx::query_as!(
        BatchResult,
        "select line, is_error, answer from batch_answer
         where batch_id = $1 and is_error = $2 and line > $3 order by line limit $4",
        id.uuid(),
        is_error,
        after,
        limit,
    )
    .fetch_all(db)
    .await?)
}
