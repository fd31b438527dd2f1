//! The state of a response while it is generated, and the events of its stream. A whole response is the state at the
//! end.
//!
//! Source of the events and of their order: "Streaming events" of the Responses API in OpenAI's API reference.

use attune_domain::serve::{self, FinishReason, GenerateEvent};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    request::ResponseSettings,
    response::{
        IncompleteDetails, ModelResponse, OutputCall, OutputItem, OutputMessage, OutputText, ResponseFailure,
        ResponseStatus,
    },
};
use crate::{
    error::InferenceError,
    wire::chat_answer::{Heading, TokenLogprob, Usage},
};

/// An event of a streamed response: the data of a server-sent event, whose name is `type`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseEvent {
    /// The event.
    #[serde(flatten)]
    pub kind: ResponseEventKind,
    /// The number of the event in its stream, from 0.
    pub sequence_number: u64,
}

/// The types of events. Each names its item by its index in `output` and by its ID.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "OpenAI's names")]
pub enum ResponseEventKind {
    /// The response is created: its prompt is processed.
    #[serde(rename = "response.created")]
    Created { response: Box<ModelResponse> },
    /// Tokens are being generated.
    #[serde(rename = "response.in_progress")]
    InProgress { response: Box<ModelResponse> },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: OutputItem },
    /// The part of a message begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: String, output_index: usize, content_index: usize, part: OutputText },
    /// More text of a message.
    #[serde(rename = "response.output_text.delta")]
    Delta { item_id: String, output_index: usize, content_index: usize, delta: String, logprobs: Vec<TokenLogprob> },
    /// The text of a message is complete.
    #[serde(rename = "response.output_text.done")]
    TextDone { item_id: String, output_index: usize, content_index: usize, text: String, logprobs: Vec<TokenLogprob> },
    /// The part of a message is complete.
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: String, output_index: usize, content_index: usize, part: OutputText },
    /// More of a call's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    /// The arguments of a call are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: OutputItem },
    /// The response is complete. The last event.
    #[serde(rename = "response.completed")]
    Completed { response: Box<ModelResponse> },
    /// The response is incomplete: its maximum length was reached. The last event.
    #[serde(rename = "response.incomplete")]
    Incomplete { response: Box<ModelResponse> },
    /// The response could not be completed. The last event.
    #[serde(rename = "response.failed")]
    Failed { response: Box<ModelResponse> },
}

/// A response that is being generated.
#[derive(Debug)]
pub struct ResponseStream {
    response: ModelResponse,
    /// The number of events so far.
    sequence: u64,
    /// `true` if the last item of the output is not complete.
    is_open: bool,
    with_logprobs: bool,
    /// The log probabilities of tokens before the first item, whose text is held back since it may become a call.
    held: Vec<TokenLogprob>,
}

impl ResponseStream {
    /// Creates a response without output. `heading` is that of its chat.
    #[must_use]
    pub fn new(heading: Heading, settings: ResponseSettings) -> Self {
        let response = ModelResponse {
            id: format!("resp_{}", Uuid::new_v4().simple()),
            object: "response",
            created_at: heading.created,
            completed_at: None,
            status: ResponseStatus::InProgress,
            model: heading.model,
            output: Vec::new(),
            error: None,
            incomplete_details: None,
            usage: None,
            settings,
            previous_response_id: None,
            background: false,
            store: false,
            truncation: "disabled",
            system_fingerprint: heading.system_fingerprint,
        };
        Self { response, sequence: 0, is_open: false, with_logprobs: heading.with_logprobs, held: Vec::new() }
    }

    /// Returns the response as it is now.
    #[must_use]
    pub fn into_response(self) -> ModelResponse {
        self.response
    }

    fn numbered(&mut self, kinds: Vec<ResponseEventKind>) -> Vec<ResponseEvent> {
        let first = self.sequence;
        self.sequence += kinds.len() as u64;
        (first..).zip(kinds).map(|(sequence_number, kind)| ResponseEvent { kind, sequence_number }).collect()
    }

    fn now(&self) -> Box<ModelResponse> {
        Box::new(self.response.clone())
    }

    /// Returns the first events of the stream.
    pub fn begin(&mut self) -> Vec<ResponseEvent> {
        let kinds = vec![
            ResponseEventKind::Created { response: self.now() },
            ResponseEventKind::InProgress { response: self.now() },
        ];
        self.numbered(kinds)
    }

    /// Adds an event of the answer, and returns the events of the stream that result. A response has one answer.
    pub fn take(&mut self, event: GenerateEvent) -> Vec<ResponseEvent> {
        let kinds = match event {
            GenerateEvent::Piece { text, tokens, .. } => self.add_text(&text, tokens),
            GenerateEvent::ToolCallStart { id, name, .. } => self.add_call(id, name),
            GenerateEvent::Arguments { text, .. } => self.add_arguments(text),
            GenerateEvent::Finished { finish_reason, .. } => self.finish(finish_reason),
            // The end of the response is [`Self::end`], and a generation returns neither of the others.
            GenerateEvent::Done { .. } | GenerateEvent::Started { .. } | GenerateEvent::Failed { .. } => Vec::new(),
        };
        self.numbered(kinds)
    }

    fn add_text(&mut self, text: &str, tokens: Vec<serve::TokenLogprob>) -> Vec<ResponseEventKind> {
        let is_message = self.is_open && matches!(self.response.output.last(), Some(OutputItem::Message(_)));
        let with_logprobs = self.with_logprobs;
        let tokens = tokens.into_iter().filter(|_| with_logprobs).map(TokenLogprob::new);
        if text.is_empty() && !is_message {
            // The tokens of calls belong to no text.
            if !self.is_open {
                self.held.extend(tokens);
            }
            return Vec::new();
        }
        let logprobs: Vec<TokenLogprob> = std::mem::take(&mut self.held).into_iter().chain(tokens).collect();
        let mut kinds = if is_message { Vec::new() } else { self.add_message() };
        let output_index = self.last_index();
        if let Some(OutputItem::Message(message)) = self.response.output.last_mut()
            && let Some(part) = message.content.first_mut()
        {
            part.text.push_str(text);
            part.logprobs.extend(logprobs.iter().cloned());
            let (item_id, delta) = (message.id.clone(), text.to_owned());
            kinds.push(ResponseEventKind::Delta { item_id, output_index, content_index: 0, delta, logprobs });
        }
        kinds
    }

    /// Begins a message.
    fn add_message(&mut self) -> Vec<ResponseEventKind> {
        let mut kinds = self.close(ResponseStatus::Completed);
        let id = format!("msg_{}", Uuid::new_v4().simple());
        let message = OutputMessage {
            r#type: "message",
            id: id.clone(),
            status: ResponseStatus::InProgress,
            role: "assistant",
            content: Vec::new(),
        };
        let part = OutputText { r#type: "output_text", text: String::new(), annotations: [], logprobs: Vec::new() };
        let output_index = self.response.output.len();
        kinds.push(ResponseEventKind::ItemAdded { output_index, item: OutputItem::Message(message.clone()) });
        kinds.push(ResponseEventKind::PartAdded { item_id: id, output_index, content_index: 0, part: part.clone() });
        self.response.output.push(OutputItem::Message(OutputMessage { content: vec![part], ..message }));
        self.is_open = true;
        kinds
    }

    fn add_call(&mut self, call_id: String, name: String) -> Vec<ResponseEventKind> {
        self.held.clear();
        let mut kinds = self.close(ResponseStatus::Completed);
        let call = OutputCall {
            r#type: "function_call",
            id: format!("fc_{}", Uuid::new_v4().simple()),
            status: ResponseStatus::InProgress,
            call_id,
            name,
            arguments: String::new(),
        };
        let (output_index, item) = (self.response.output.len(), OutputItem::Call(call));
        kinds.push(ResponseEventKind::ItemAdded { output_index, item: item.clone() });
        self.response.output.push(item);
        self.is_open = true;
        kinds
    }

    fn add_arguments(&mut self, delta: String) -> Vec<ResponseEventKind> {
        let output_index = self.last_index();
        let Some(OutputItem::Call(call)) = self.response.output.last_mut() else { return Vec::new() };
        call.arguments.push_str(&delta);
        vec![ResponseEventKind::ArgumentsDelta { item_id: call.id.clone(), output_index, delta }]
    }

    /// Ends the answer. One without text and calls has an empty message.
    fn finish(&mut self, reason: FinishReason) -> Vec<ResponseEventKind> {
        let status = match reason {
            FinishReason::Stop | FinishReason::ToolCalls => ResponseStatus::Completed,
            FinishReason::Length => ResponseStatus::Incomplete,
        };
        let mut kinds = if self.response.output.is_empty() { self.add_message() } else { Vec::new() };
        kinds.extend(self.close(status));
        self.response.status = status;
        kinds
    }

    fn last_index(&self) -> usize {
        self.response.output.len().saturating_sub(1)
    }

    /// Completes the last item with this status, if it is not complete.
    fn close(&mut self, status: ResponseStatus) -> Vec<ResponseEventKind> {
        let (output_index, was_open) = (self.last_index(), std::mem::take(&mut self.is_open));
        let Some(item) = self.response.output.last_mut().filter(|_| was_open) else { return Vec::new() };
        let mut kinds = Vec::new();
        match item {
            OutputItem::Message(message) => {
                message.status = status;
                for (content_index, part) in message.content.iter().enumerate() {
                    let (item_id, part) = (message.id.clone(), part.clone());
                    let (text, logprobs) = (part.text.clone(), part.logprobs.clone());
                    kinds.push(ResponseEventKind::TextDone {
                        item_id: item_id.clone(),
                        output_index,
                        content_index,
                        text,
                        logprobs,
                    });
                    kinds.push(ResponseEventKind::PartDone { item_id, output_index, content_index, part });
                }
            }
            OutputItem::Call(call) => {
                call.status = status;
                kinds.push(ResponseEventKind::ArgumentsDone {
                    item_id: call.id.clone(),
                    output_index,
                    name: call.name.clone(),
                    arguments: call.arguments.clone(),
                });
            }
        }
        kinds.push(ResponseEventKind::ItemDone { output_index, item: item.clone() });
        kinds
    }

    /// Ends the response with its usage, at the time `now` in Unix seconds. Returns the last event of the stream.
    pub fn end(&mut self, usage: Usage, now: i64) -> Vec<ResponseEvent> {
        self.response.usage = Some(usage.into());
        let kind = if self.response.status == ResponseStatus::Incomplete {
            self.response.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
            ResponseEventKind::Incomplete { response: self.now() }
        } else {
            self.response.completed_at = Some(now);
            ResponseEventKind::Completed { response: self.now() }
        };
        self.numbered(vec![kind])
    }

    /// Ends the response with an error. Returns the last event of the stream. An item in progress becomes incomplete,
    /// without an event of its own.
    pub fn fail(&mut self, error: &InferenceError) -> Vec<ResponseEvent> {
        self.close(ResponseStatus::Incomplete);
        self.response.status = ResponseStatus::Failed;
        self.response.error = Some(ResponseFailure::from(error));
        let kind = ResponseEventKind::Failed { response: self.now() };
        self.numbered(vec![kind])
    }
}

#[cfg(test)]
mod tests;
