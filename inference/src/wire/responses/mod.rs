//! OpenAI's Responses API, without stored responses: requests that are translated to chats, and responses, whole or as
//! events.
//!
//! Source of the shapes: OpenAI's API reference and `types/responses` of the client `openai` 3.57.0.

/// The input of a response: items, and their translation to messages.
pub mod input;
/// The output format and the tools, and their translation to those of a chat.
pub mod options;
/// Requests for a response.
pub mod request;
/// Responses.
pub mod response;

/// The state of a response while it is generated, and the events of its stream.
pub mod stream;
