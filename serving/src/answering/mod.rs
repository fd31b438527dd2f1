//! The path of one request from its prompt to streamed text.

pub mod answer;
pub(crate) mod answer_stream;
pub mod grammar;
pub(crate) mod grammar_rules;
pub(crate) mod lark;
pub mod stop;
