//! Bodies of chat and text completions.

/// Chat requests.
pub mod chat;
/// Chat answers, whole and in chunks.
pub mod chat_answer;
/// The messages of a chat.
pub mod chat_message;
/// Requests for completions of plain text.
pub mod completion;
/// Completions, whole and in chunks.
pub mod completion_answer;
/// What an answer must look like and may call.
pub mod form;
/// Fields of OpenAI's bodies that change nothing.
pub mod ignored;
/// What chats and completions ask of the drawing of tokens.
pub mod sampling;
