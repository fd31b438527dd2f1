//! Request and response bodies of chat and text completions.

/// Chat completion requests.
pub mod chat;
/// Chat completion responses, whole and in chunks.
pub mod chat_answer;
/// Chat messages in requests.
pub mod chat_message;
/// Text completion requests.
pub mod completion;
/// Text completion responses, whole and in chunks.
pub mod completion_answer;
/// The required format of an answer and the tools that it may call.
pub mod form;
/// Ignored fields of OpenAI's request bodies.
pub mod ignored;
/// The bounds of JSON schemas.
pub mod json_schema;
pub mod lorax;
/// Metadata of jobs, batches and completions.
pub mod metadata;
/// The names of parameters in translated requests.
pub mod param_names;
pub mod responses;
/// Sampling parameters of chat and text completions.
pub mod sampling;
/// Regular expressions, grammars and choices as the format of an answer.
pub mod structure;
