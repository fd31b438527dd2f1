//! A preview: which rows of a file, under which of a job's settings; and each row's tokens as they would be trained on.

use attune_domain::spec::Requested;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Which rows, and how they would be trained on.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPreview {
    /// A base model's name: its tokenizer and chat template are used.
    #[schema(example = "smollm2-135m-instruct")]
    pub model: String,
    /// Rows by their lines in the file, from 1; at most 100. The first five if left out.
    #[schema(example = json!([1, 5]))]
    pub rows: Option<Vec<u64>>,
    /// As the job's.
    pub method: Option<PreviewMethod>,
    /// As the job's.
    pub trainer: Option<PreviewTrainer>,
    /// As the job's.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// The part of a job's `method` that decides about rows.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewMethod {
    /// `supervised`, the default, or `continued_pretraining`.
    #[schema(example = "supervised")]
    pub r#type: String,
}

/// The part of a job's `trainer` that decides about rows.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewTrainer {
    /// Prompts are learnt too; `false` if left out.
    pub train_on_prompt: Option<bool>,
    /// What becomes of a row above `max_length`: `error`, the default, `truncate`, `drop` or `split`.
    pub over_length: Option<String>,
    /// Tokens of a row, at most.
    pub max_length: Option<i64>,
}

impl NewPreview {
    /// What is to be checked further, as a job's fields are.
    pub fn requested(&self) -> Requested {
        let trainer = self.trainer.clone().unwrap_or_default();
        Requested {
            method: self.method.as_ref().map(|method| method.r#type.clone()),
            train_on_prompt: trainer.train_on_prompt,
            over_length: trainer.over_length,
            max_length: trainer.max_length,
            chat_template_kwargs: self.chat_template_kwargs.clone(),
            ..Requested::default()
        }
    }
}

/// The rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Preview {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// By line; a row that was split is there once for each part.
    pub data: Vec<PreviewRow>,
}

/// One row, or a part of one, as it would be trained on. `ids`, `pieces` and `mask` are of one length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PreviewRow {
    /// Always `file.preview_row`.
    #[schema(example = "file.preview_row")]
    pub object: &'static str,
    /// Its line in the file, from 1.
    pub line: u64,
    /// Which part of the row, from 1; 0 if the row is dropped.
    pub part: usize,
    /// How many parts the row has.
    pub parts: usize,
    /// Token ids.
    pub ids: Vec<u32>,
    /// The text of each token; joined, they are the text of the row as the model reads it.
    pub pieces: Vec<String>,
    /// Places in `pieces` of tokens that hold only a part of a character. The bytes of that part stand in the piece as
    /// `\xF0`.
    pub partial: Vec<usize>,
    /// For each token, whether the loss is taken on predicting it: 1 or 0.
    pub mask: Vec<u8>,
    /// How many tokens.
    pub tokens: usize,
    /// How many of them are trained.
    pub trained_tokens: usize,
    /// What was done to a row above `max_length`; `null` for any other.
    pub over_length: Option<PreviewOverLength>,
}

/// What was done to a row above `max_length`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PreviewOverLength {
    /// `truncate`, `drop` or `split`.
    pub policy: &'static str,
    /// Tokens of the whole row.
    pub row_tokens: u64,
    /// Tokens of a row, at most.
    pub max_length: u32,
    /// Parts that are left out, since no token of them is trained.
    pub left_out: u64,
}
