//! Chat completion requests: OpenAI's request body, as far as it is supported. An unsupported field is refused by name,
//! never ignored.

use std::collections::BTreeMap;

use attune_domain::{
    dataset::without_nulls,
    serve::{ChatMessage, Form, Prompt, Sampling, Tools},
    template_kwargs::TemplateKwargs,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat_message::{MessageIn, look_through},
    form::{self, ResponseFormat, ToolChoiceIn, ToolIn},
    ignored::{remove_ignored, split_key},
    param_names::ParamNames,
    sampling::{Stop, StreamOptions, check_generated, check_max_tokens, check_model, range, shared},
    structure::{self, StructuredOutputs},
};
use crate::{error::InferenceError, json};

/// The largest `top_logprobs`. Source: OpenAI's API reference.
const MOST_LOGPROBS: u32 = 20;

/// The maximum number of messages in one request.
const MOST_MESSAGES: usize = 4096;

/// The request body for a chat completion.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChat {
    /// The name of a base model or of a fine-tuned model.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The messages of the conversation so far.
    pub messages: Vec<MessageIn>,
    /// The sampling temperature, from 0 (always the most likely token) to 2. Defaults to 1.
    pub temperature: Option<f64>,
    /// Only this many of the most likely tokens are considered, up to 1048576. 0 and -1, the default, mean all. Applied
    /// before `top_p`.
    pub top_k: Option<i32>,
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are considered. Defaults
    /// to 1.
    pub top_p: Option<f64>,
    /// Only tokens with at least this fraction of the most likely token's probability are considered, from 0, the
    /// default, to 1. Applied after `top_p`.
    pub min_p: Option<f64>,
    /// A number from 0.01 to 100 that makes tokens of the prompt and of the answer less likely: their positive logits
    /// are divided by it, negative ones multiplied. Defaults to 1.
    pub repetition_penalty: Option<f64>,
    /// The number of choices to generate, from 1 to 128. Defaults to 1. The prompt is processed once for all of them.
    pub n: Option<u32>,
    /// A number from -2 to 2, subtracted once from the logit of each token that the answer already contains.
    pub presence_penalty: Option<f64>,
    /// A number from -2 to 2, subtracted from a token's logit once for each time that the answer already contains the
    /// token.
    pub frequency_penalty: Option<f64>,
    /// A map from token IDs to biases from -100 to 100, which are added to the tokens' logits.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// If `true`, returns the log probability of each token of the answer.
    pub logprobs: Option<bool>,
    /// The number of most likely tokens to return at each position, from 0 to 20. Requires `logprobs`.
    pub top_logprobs: Option<u32>,
    /// The random seed: the same seed and request sample the same tokens. Defaults to a new seed for each request.
    pub seed: Option<i64>,
    /// Up to 4 sequences at which generation stops. The answer does not contain the stop sequence.
    #[serde(default)]
    pub stop: Stop,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    /// The maximum number of tokens in the answer. Defaults to as many as the context length allows.
    pub max_completion_tokens: Option<u64>,
    /// The format of the answer's text, enforced while tokens are sampled.
    pub response_format: Option<ResponseFormat>,
    /// The format of the answer's text in the form of vLLM's clients, in place of `response_format`.
    pub structured_outputs: Option<StructuredOutputs>,
    /// The tools that the model may call.
    pub tools: Option<Vec<ToolIn>>,
    /// The tool choice: `none`, `auto` (the default), `required`, or one tool by its name.
    pub tool_choice: Option<ToolChoiceIn>,
    /// Allows several tool calls in an answer that must call a tool or whose tools are strict. Defaults to `true`.
    pub parallel_tool_calls: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`: at most 16, each a string, a number, a boolean, null
    /// or a list of those.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// A shorthand for `chat_template_kwargs: {"enable_thinking": …}`.
    pub enable_thinking: Option<bool>,
    /// Accepted, but nothing is stored: the response has the header `attune-stored: false`.
    pub store: Option<bool>,
    /// If `true`, streams the answer in chunks, as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream. Requires `stream`.
    pub stream_options: Option<StreamOptions>,
}

/// A checked request for a chat completion.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The name of the model.
    pub model: String,
    /// The messages, and the variables that the request sets in the chat template.
    pub prompt: Prompt,
    /// The required format of the answer's text.
    pub form: Form,
    /// The names of parameters in errors of the replica.
    pub(crate) names: ParamNames,
    /// The tools that the model may call; `None` if there are none.
    pub tools: Option<Tools>,
    /// The number of choices to generate.
    pub choices: u32,
    /// The sampling parameters.
    pub sampling: Sampling,
    /// `true` if the answer is streamed.
    pub streams: bool,
    /// `true` if the stream ends with a usage chunk.
    pub with_usage: bool,
    /// `true` if the request has `store: true`.
    pub store: bool,
    /// The key by which the requests to an alias are split between its versions, if the caller sets one.
    pub split_key: Option<String>,
}

/// A function that returns whether a field's value requests only the default behavior.
type AsksNothing = fn(&Value) -> bool;

/// Unsupported fields: the name, a test for values that request only the default behavior, and the reason to refuse any
/// other.
const UNSUPPORTED_FIELDS: [(&str, AsksNothing, &str); 10] = [
    ("functions", is_empty, "use 'tools'"),
    ("function_call", |v| v == "none", "use 'tool_choice'"),
    ("modalities", |v| *v == serde_json::json!(["text"]), "only [\"text\"] is supported"),
    ("audio", |_| false, "audio is not supported"),
    ("prediction", |_| false, "predicted outputs are not supported"),
    ("reasoning_effort", |_| false, "the models here have no reasoning effort"),
    ("verbosity", |_| false, "the models here have no verbosity"),
    ("web_search_options", |_| false, "the web is not searched"),
    ("moderation", |_| false, "answers are not moderated"),
    ("prompt_cache_options", |_| false, "how prompts are cached cannot be chosen"),
];

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

impl NewChat {
    /// Parses and checks a request body. Removes ignored fields first.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(fields: Map<String, Value>) -> Result<ChatRequest, InferenceError> {
        Self::read_with(fields, rand::random())
    }

    /// Parses and checks a request body; `default_seed` is its seed if it sets none.
    fn read_with(mut fields: Map<String, Value>, default_seed: u64) -> Result<ChatRequest, InferenceError> {
        let split_key = split_key(&fields);
        remove_ignored(&mut fields)?;
        for (name, asks_nothing, why) in UNSUPPORTED_FIELDS {
            match fields.remove(name) {
                Some(value) if !value.is_null() && !asks_nothing(&value) => {
                    return Err(InferenceError::unsupported(name, format!("Unsupported '{name}': {why}.")));
                }
                _ => {}
            }
        }
        let messages = fields.get_mut("messages").and_then(Value::as_array_mut);
        for (i, message) in messages.into_iter().flatten().enumerate() {
            look_through(i, message)?;
        }
        // With keys in their original order: the chat template renders the tools as in training rows.
        let shown_tools = fields.get("tools").cloned();
        let new: Self = json::from_value(Value::Object(fields))?;
        Ok(ChatRequest { split_key, ..new.checked(shown_tools, default_seed)? })
    }

    fn checked(self, shown_tools: Option<Value>, default_seed: u64) -> Result<ChatRequest, InferenceError> {
        if self.messages.is_empty() {
            return Err(InferenceError::invalid("messages", "Invalid 'messages': the list is empty."));
        }
        if self.messages.len() > MOST_MESSAGES {
            let message =
                format!("Invalid 'messages': {} messages; at most {MOST_MESSAGES} are allowed.", self.messages.len());
            return Err(InferenceError::invalid("messages", message));
        }
        check_model(&self.model)?;
        let shared = shared!(self);
        let sampling = shared.sampling(default_seed)?;
        let messages = self.chat_messages()?;
        let form = self.form()?;
        let names = self.structured_outputs.as_ref().map(|_| structure::names()).unwrap_or_default();
        let tools = self.tools(shown_tools)?;
        let template_kwargs = self.template_kwargs()?;
        let logprobs = self.logprobs()?;
        let max_tokens = self.max_tokens()?;
        check_generated("n", shared.choices(), max_tokens)?;
        Ok(ChatRequest {
            prompt: Prompt::Chat { messages, template_kwargs },
            form,
            names,
            tools,
            choices: shared.choices(),
            sampling: Sampling { logprobs, max_tokens, ..sampling },
            streams: shared.streams(),
            with_usage: shared.streams_usage(),
            store: self.store == Some(true),
            split_key: None,
            model: self.model,
        })
    }

    fn form(&self) -> Result<Form, InferenceError> {
        match (&self.response_format, &self.structured_outputs) {
            (None, None) => Ok(Form::Free),
            (Some(format), None) => format.form(),
            (None, Some(outputs)) => outputs.form(),
            (Some(_), Some(_)) => {
                let message = "Invalid 'structured_outputs': it does not go with 'response_format'; give one of them.";
                Err(InferenceError::invalid("structured_outputs", message))
            }
        }
    }

    fn logprobs(&self) -> Result<Option<u32>, InferenceError> {
        range("top_logprobs", self.top_logprobs.map(f64::from), 0.0, f64::from(MOST_LOGPROBS))?;
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(InferenceError::invalid("top_logprobs", "'top_logprobs' only goes with 'logprobs': true."));
        }
        Ok((self.logprobs == Some(true)).then(|| self.top_logprobs.unwrap_or(0)))
    }

    fn max_tokens(&self) -> Result<Option<u64>, InferenceError> {
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            let message = "'max_tokens' is the older name of 'max_completion_tokens'; give one of them.";
            return Err(InferenceError::invalid("max_tokens", message));
        }
        check_max_tokens("max_tokens", self.max_tokens, 1)?;
        check_max_tokens("max_completion_tokens", self.max_completion_tokens, 1)?;
        Ok(self.max_completion_tokens.or(self.max_tokens))
    }

    /// Returns the messages in the form of the serving contract.
    fn chat_messages(&self) -> Result<Vec<ChatMessage>, InferenceError> {
        self.messages.iter().enumerate().map(|(i, message)| message.to_chat(i)).collect()
    }

    /// Returns the variables that the request sets in the chat template. `enable_thinking` may not be set twice with
    /// different values.
    fn template_kwargs(&self) -> Result<TemplateKwargs, InferenceError> {
        let mut kwargs = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(thinking) = self.enable_thinking
            && kwargs.insert("enable_thinking".into(), thinking.into()).is_some_and(|other| other != thinking)
        {
            let message = "Invalid 'enable_thinking': 'chat_template_kwargs' has another value of it.";
            return Err(InferenceError::invalid("enable_thinking", message));
        }
        Ok(TemplateKwargs::check(&kwargs)?)
    }

    /// Returns the tools that the model may call, `None` if there are none. `shown` is the request's list as received.
    fn tools(&self, shown: Option<Value>) -> Result<Option<Tools>, InferenceError> {
        let given = self.tools.as_deref().unwrap_or_default();
        if self.parallel_tool_calls.is_some() && given.is_empty() {
            let message = "'parallel_tool_calls' only goes with 'tools'.";
            return Err(InferenceError::invalid("parallel_tool_calls", message));
        }
        let shown = shown.map(without_nulls).unwrap_or_default();
        form::tools(given, shown, self.tool_choice.as_ref(), self.parallel_tool_calls)
    }
}

#[cfg(test)]
mod tests;
