//! Tokens: what a model reads and writes, and which of them are trained. No tensors, no network.
//!
//! Leans on the `tokenizers` and `minijinja` crates; agrees with transformers, by fixtures in `testdata/`. Read in
//! this order.

/// Text to ids.
pub mod tokenizer;

/// Ids to text, whole or as they come.
pub mod detokenizer;

/// Bounds of what a chat template may do.
mod sandbox;

/// Bounds of what a tokenizer may do.
mod tokenizer_bounds;

/// Python's `json.dumps`, which templates call `tojson`.
mod json;

/// Python's `str` and `repr`.
mod repr;

/// The sentence that says why a chat template does not compile or render.
mod template_error;

/// Chat templates, rendered as transformers renders them.
pub mod template;

/// A model's folder: tokenizer, template, special tokens.
pub mod model;

/// Tokens and ids that files name.
pub mod token_ids;

/// Rows to ids and loss mask.
pub mod encode;

/// A file's rows to what is trained on, under a job's policy.
pub mod rows;

/// What was done to a file's rows, in sentences.
pub mod tally;

/// Rows that were there before.
pub mod repeats;

/// What a dataset is like.
pub mod report;

/// Tool calls, read out of an answer.
pub mod tools;

/// Tools for models whose template takes none.
pub mod generic_tools;

/// The text of each token.
pub mod pieces;

/// What can go wrong.
pub mod error;
