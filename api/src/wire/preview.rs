//! Previews: the tokens of a file's rows as a job with the given settings would train on them.

use attune_domain::spec::{Requested, request::TrainerFields};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::method::PreviewMethod;

/// The request body for a preview.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPreview {
    /// The name of the base model whose tokenizer and chat template are used.
    #[schema(example = "smollm2-135m-instruct")]
    pub model: String,
    /// The rows, by their lines in the file, from 1; at most 100. Defaults to the first five.
    #[schema(example = json!([1, 5]))]
    pub rows: Option<Vec<u64>>,
    /// The training method, as in a job.
    pub method: Option<PreviewMethod>,
    /// The trainer's settings, as in a job.
    pub trainer: Option<PreviewTrainer>,
    /// Variables of the chat template, as in a job.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// The part of a job's `trainer` that affects rows.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewTrainer {
    /// If `true`, the loss covers prompts too. Defaults to `false`.
    pub train_on_prompt: Option<bool>,
    /// The policy for rows longer than `max_length`: `error` (the default), `truncate`, `drop` or `split`.
    pub over_length: Option<String>,
    /// The maximum length of a row in tokens.
    pub max_length: Option<i64>,
}

impl NewPreview {
    /// Returns the request for the same further checks as a job's.
    pub fn requested(&self) -> Requested {
        let PreviewTrainer { train_on_prompt, over_length, max_length } = self.trainer.clone().unwrap_or_default();
        Requested {
            method: self.method.as_ref().map(|method| method.r#type.clone()),
            trainer: TrainerFields { train_on_prompt, over_length, max_length, ..TrainerFields::default() },
            chat_template_kwargs: self.chat_template_kwargs.clone(),
            ..Requested::default()
        }
    }
}

/// A preview of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Preview {
    /// The object type, always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// The rows, by line. A row that was split has one entry for each part.
    pub data: Vec<PreviewRow>,
}

/// A row, or a part of one, as it would be trained on. `ids`, `pieces` and `mask` have the same length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PreviewRow {
    /// The object type, always `file.preview_row`.
    #[schema(example = "file.preview_row")]
    pub object: &'static str,
    /// The row's line in the file, from 1.
    pub line: u64,
    /// The number of this part of the row, from 1; 0 if the row is dropped.
    pub part: usize,
    /// The number of parts of the row.
    pub parts: usize,
    /// The token IDs.
    pub ids: Vec<u32>,
    /// The text of each token. Joined, they are the text of the row as the model reads it.
    pub pieces: Vec<String>,
    /// The indices in `pieces` of tokens that contain only a part of a character. The bytes of that part are written as
    /// `\xF0`.
    pub partial: Vec<usize>,
    /// The loss mask: 1 if the loss includes the prediction of the token, else 0.
    pub mask: Vec<u8>,
    /// The number of tokens.
    pub tokens: usize,
    /// The number of trained tokens.
    pub trained_tokens: usize,
    /// The treatment of a row longer than `max_length`; `null` for any other row.
    pub over_length: Option<PreviewOverLength>,
}

/// The treatment of a row longer than `max_length`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PreviewOverLength {
    /// The policy: `truncate`, `drop` or `split`.
    pub policy: &'static str,
    /// The number of tokens of the whole row.
    pub row_tokens: u64,
    /// The maximum length of a row in tokens.
    pub max_length: u32,
    /// The number of parts that are omitted because none of their tokens is trained.
    pub left_out: u64,
}
