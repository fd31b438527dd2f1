//! The order of a batch's requests: those of one model after each other, so that a replica needs few adapters at a time
//! and loads each once. Memory: a few bytes for each request.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use attune_inference::context::Inference;
use attune_store::batches::{batch::Batch, batch_answer};
use serde::Deserialize;

use crate::batches::{
    error::BatchError,
    lines::{Line, Lines},
};

/// The longest name of a model, in bytes. A longer one is no model's.
const NAME_BYTES: usize = 512;

/// The requests of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// The name of the model; `None`: the requests name none.
    pub(crate) model: Option<String>,
    /// The requests, in the order of the file.
    pub(crate) rows: Vec<Row>,
}

/// The place of a request in the input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// The line number, from 1.
    pub(crate) line: u64,
    /// The bytes of the line.
    pub(crate) span: Range<u64>,
}

/// The part of a request that the order depends on.
#[derive(Deserialize)]
struct Named {
    body: NamedBody,
}

#[derive(Deserialize)]
struct NamedBody {
    model: String,
}

fn model(text: &[u8]) -> Option<String> {
    let named: Named = serde_json::from_slice(text).ok()?;
    Some(named.body.model).filter(|name| name.len() <= NAME_BYTES)
}

/// Returns the lines that have an answer.
///
/// # Errors
/// [`BatchError::Failed`]: the database is unavailable.
pub(crate) async fn answered(inference: &Inference, batch: &Batch) -> Result<HashSet<u64>, BatchError> {
    let mut db = inference.platform().await?;
    let lines = batch_answer::answered(&mut db, batch.batch_id).await?;
    Ok(lines.into_iter().map(|line| u64::from(line.unsigned_abs())).collect())
}

/// Returns the requests that have no answer yet, by model.
///
/// # Errors
/// [`BatchError::InputGone`], [`BatchError::Failed`]: the store fails.
pub(crate) async fn unanswered(inference: &Inference, batch: &Batch) -> Result<Vec<Group>, BatchError> {
    let answered = answered(inference, batch).await?;
    let mut lines = Lines::open(inference, batch).await?;
    let mut groups = Groups::default();
    while let Some(Line::Text(line, text)) = lines.next().await? {
        if !answered.contains(&line) {
            groups.add(model(&text), Row { line, span: lines.span() });
        }
    }
    Ok(groups.groups)
}

/// The groups, in the order of their first requests.
#[derive(Default)]
struct Groups {
    groups: Vec<Group>,
    indices: HashMap<Option<String>, usize>,
}

impl Groups {
    fn add(&mut self, model: Option<String>, row: Row) {
        let next = self.groups.len();
        let index = *self.indices.entry(model.clone()).or_insert(next);
        match self.groups.get_mut(index) {
            Some(group) => group.rows.push(row),
            None => self.groups.push(Group { model, rows: vec![row] }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_model_follow_each_other_in_the_order_of_the_file() {
        let mut groups = Groups::default();
        for (line, name) in [(1, "a"), (2, "b"), (4, "a"), (5, "c"), (6, "b")] {
            let text = format!(r#"{{"custom_id": "x", "body": {{"messages": [], "model": "{name}"}}}}"#);
            groups.add(model(text.as_bytes()), Row { line, span: line * 10..line * 10 + 5 });
        }
        let order: Vec<(Option<&str>, Vec<u64>)> = groups
            .groups
            .iter()
            .map(|group| (group.model.as_deref(), group.rows.iter().map(|row| row.line).collect()))
            .collect();
        assert_eq!(order, [(Some("a"), vec![1, 4]), (Some("b"), vec![2, 6]), (Some("c"), vec![5])]);
    }

    #[test]
    fn limit_a_name_that_no_model_has_is_not_kept() {
        let text = |bytes: usize| format!(r#"{{"body": {{"model": "{}"}}}}"#, "m".repeat(bytes));
        assert_eq!(model(text(NAME_BYTES).as_bytes()).map(|name| name.len()), Some(NAME_BYTES));
        for text in [text(NAME_BYTES + 1).as_str(), r#"{"body": {}}"#, r#"{"body": {"model": 7}}"#] {
            assert_eq!(model(text.as_bytes()), None);
        }
    }
}
