//! The events of a replica's answer.

use serde::{Deserialize, Serialize};

use super::adapter::{AdapterKey, AdapterTier};

/// The reason why an answer ended, in OpenAI's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was generated.
    Stop,
    /// `max_tokens` was reached, or the context was full.
    Length,
    /// The model ended its turn with tool calls.
    ToolCalls,
}

/// A token and its log-probability: the log-softmax of the model's raw logits, before temperature, penalties and
/// biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's ID.
    #[serde(default)]
    pub id: u32,
    /// `true`: a special token of the tokenizer, which has no text in the answer.
    #[serde(default)]
    pub special: bool,
    /// The token's bytes; a token may hold only a part of a character.
    pub bytes: Vec<u8>,
    /// The log-probability; `None` for a token without a preceding context.
    pub logprob: Option<f64>,
    /// The most likely tokens at this position.
    pub top: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The log-probability, as in [`TokenLogprob`].
    pub logprob: f64,
}

/// The prompt, returned with the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// The prompt's text.
    pub text: String,
    /// The prompt's tokens, if log-probabilities were requested.
    pub tokens: Vec<TokenLogprob>,
}

/// One line of the response to `POST /generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// The prompt is processed.
    Started {
        /// The length of the prompt.
        prompt_tokens: u64,
        /// The number of leading prompt tokens whose keys and values were reused from an earlier request.
        cached_tokens: u64,
        /// The prompt, if `echo` was requested.
        echo: Option<Echo>,
        /// The adapter that answers.
        #[serde(default)]
        adapter: Option<AdapterKey>,
        /// The place where the adapter was found.
        #[serde(default)]
        tier: Option<AdapterTier>,
        /// The time that the request waited for its first step, in milliseconds; `None`: its engine does not report it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        queued_ms: Option<u64>,
    },
    /// A chunk of final text: whole characters, no part of a stop string.
    Piece {
        /// The index of the answer, from 0.
        choice: u32,
        /// The text of the chunk.
        text: String,
        /// The tokens of this text, if log-probabilities were requested.
        tokens: Vec<TokenLogprob>,
    },
    /// The start of a tool call.
    #[serde(rename = "called")]
    ToolCallStart {
        /// The index of the answer, from 0.
        choice: u32,
        /// The index of the call within the answer, from 0.
        call: u32,
        /// The call's ID, which the message with the call's result repeats.
        id: String,
        /// The name of the tool.
        name: String,
    },
    /// A chunk of the arguments of a call.
    Arguments {
        /// The index of the answer, from 0.
        choice: u32,
        /// The index of the call within the answer, from 0.
        call: u32,
        /// A part of the arguments' JSON text.
        text: String,
    },
    /// The end of one answer.
    Finished {
        /// The index of the answer, from 0.
        choice: u32,
        /// The reason why the answer ended.
        finish_reason: FinishReason,
        /// `true`: a stop string ended the answer.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stop_string: bool,
        /// The tokens that ended the answer and have no text in it, if log-probabilities were requested: the end token,
        /// or those of the stop string.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        end_tokens: Vec<TokenLogprob>,
    },
    /// The end of the whole response.
    Done {
        /// The number of tokens sampled for all answers, end tokens included.
        completion_tokens: u64,
    },
    /// The end of the response after an error. No output of another model was sent instead.
    Failed {
        /// A stable, machine-readable code: `context_length_exceeded`, `adapter_unavailable`, `invalid_prompt`,
        /// `invalid_request`, `project_busy`, `replica_busy`, `internal`.
        code: String,
        /// The error message.
        message: String,
        /// The request field at fault, if it is not the prompt.
        param: Option<String>,
    },
}
