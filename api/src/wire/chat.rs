//! Chat requests: OpenAI's body, as far as it can be done. What cannot is refused by name, never passed over.

use std::collections::BTreeMap;

use attune_domain::serve::{ChatMessage, Form, Sampling, Tools};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat_message::{MessageIn, look_through},
    form::{self, ResponseFormat, ToolChoiceIn, ToolIn},
    sampling::{IDLE, Shared, Stop, StreamOptions, range},
};
use crate::{body, error::ApiError};

/// The most rivals that are told of a token. Source: OpenAI's API reference.
const MOST_LOGPROBS: u32 = 20;

/// A chat to be gone on with.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChat {
    /// A base model's name, or a tuned one's.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The chat so far.
    pub messages: Vec<MessageIn>,
    /// From 0, always the most likely token, to 2; 1 if left out.
    pub temperature: Option<f64>,
    /// Only the most likely tokens that together have this probability; 1 if left out.
    pub top_p: Option<f64>,
    /// How many answers, from 1 to 128; 1 if left out. They share the reading of the prompt.
    pub n: Option<u32>,
    /// From -2 to 2; taken from the logit of each token that the answer has already.
    pub presence_penalty: Option<f64>,
    /// From -2 to 2; the same, as many times as the answer has the token.
    pub frequency_penalty: Option<f64>,
    /// By token id, from -100 to 100: added to the token's logit.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Tells the log-probability of each token of the answer.
    pub logprobs: Option<bool>,
    /// From 0 to 20, with `logprobs`: how many of the most likely tokens in each place are told as well.
    pub top_logprobs: Option<u32>,
    /// The same seed and request draw the same tokens; a new one each time if left out.
    pub seed: Option<i64>,
    /// Up to 4 texts before which the answer ends.
    #[serde(default)]
    pub stop: Stop,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    /// The longest answer in tokens; as long as the context allows if left out.
    pub max_completion_tokens: Option<u64>,
    /// What the answer's text must be; enforced while it is drawn.
    pub response_format: Option<ResponseFormat>,
    /// What the answer may call; for models whose chat template takes tools.
    pub tools: Option<Vec<ToolIn>>,
    /// Which of `tools` are called: `none`, `auto` (if left out), `required`, or one by its name.
    pub tool_choice: Option<ToolChoiceIn>,
    /// Whether an answer that must call, or whose tools are strict, may call several times; `true` if left out.
    pub parallel_tool_calls: Option<bool>,
    /// Answers in chunks, as server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
}

/// Whether a field's value asks for nothing that is not done anyway.
type AsksNothing = fn(&Value) -> bool;

/// Fields that cannot be done yet: a test for values that ask for nothing, and why the others are refused.
const NOT_YET: [(&str, AsksNothing, &str); 11] = [
    ("store", |v| v == false, "answers are not kept"),
    ("functions", is_empty, "use 'tools'"),
    ("function_call", |v| v == "none", "use 'tool_choice'"),
    ("modalities", |v| *v == serde_json::json!(["text"]), "only [\"text\"] is supported"),
    ("audio", |_| false, "audio is not supported"),
    ("prediction", |_| false, "predicted outputs are not supported"),
    ("reasoning_effort", |_| false, "the models here have no reasoning effort"),
    ("verbosity", |_| false, "the models here have no verbosity"),
    ("web_search_options", |_| false, "the web is not searched"),
    ("moderation", |_| false, "answers are not moderated"),
    ("prompt_cache_options", |_| false, "prompts are not cached"),
];

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

impl NewChat {
    /// Reads a body; takes away what changes nothing.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a field is unknown, wrong, or asks for what cannot be done yet.
    pub fn read(mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        fields.retain(|name, _| !IDLE.contains(&name.as_str()));
        for (name, asks_nothing, why) in NOT_YET {
            match fields.remove(name) {
                Some(value) if !value.is_null() && !asks_nothing(&value) => {
                    return Err(ApiError::unsupported(name, format!("Unsupported '{name}': {why}.")));
                }
                _ => {}
            }
        }
        let messages = fields.get_mut("messages").and_then(Value::as_array_mut);
        for (i, message) in messages.into_iter().flatten().enumerate() {
            look_through(i, message)?;
        }
        let chat: Self = body::from_value(Value::Object(fields))?;
        chat.check()?;
        Ok(chat)
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid("messages", "Invalid 'messages': the list is empty."));
        }
        self.shared().check()?;
        self.chat_messages()?;
        self.form()?;
        self.tools()?;
        range("top_logprobs", self.top_logprobs.map(f64::from), 0.0, f64::from(MOST_LOGPROBS))?;
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ApiError::invalid("top_logprobs", "'top_logprobs' only goes with 'logprobs': true."));
        }
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            let message = "'max_tokens' is the older name of 'max_completion_tokens'; give one of them.";
            return Err(ApiError::invalid("max_tokens", message));
        }
        for (name, value) in [("max_tokens", self.max_tokens), ("max_completion_tokens", self.max_completion_tokens)] {
            if value == Some(0) {
                return Err(ApiError::invalid(name, format!("Invalid '{name}': 0 is below 1.")));
            }
        }
        Ok(())
    }

    fn shared(&self) -> Shared<'_> {
        Shared {
            temperature: self.temperature,
            top_p: self.top_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.as_ref(),
            seed: self.seed,
            stop: &self.stop,
            n: self.n,
            stream: self.stream,
            stream_options: self.stream_options,
        }
    }

    /// How many answers.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Whether the answer comes in chunks.
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether the stream ends with the usage.
    pub fn streams_usage(&self) -> bool {
        self.shared().streams_usage()
    }

    /// The messages in a replica's words.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: one lacks something, or has what does not go with its role.
    pub fn chat_messages(&self) -> Result<Vec<ChatMessage>, ApiError> {
        self.messages.iter().enumerate().map(|(i, message)| message.to_chat(i)).collect()
    }

    /// What the answer's text must be.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn form(&self) -> Result<Form, ApiError> {
        self.response_format.as_ref().map_or(Ok(Form::Free), ResponseFormat::form)
    }

    /// What the answer may call.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn tools(&self) -> Result<Option<Tools>, ApiError> {
        let given = self.tools.as_deref().unwrap_or_default();
        if self.parallel_tool_calls.is_some() && given.is_empty() {
            let message = "'parallel_tool_calls' only goes with 'tools'.";
            return Err(ApiError::invalid("parallel_tool_calls", message));
        }
        form::tools(given, self.tool_choice.as_ref(), self.parallel_tool_calls)
    }

    /// How tokens are drawn; `dice` stands in for a seed that was not given.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a bias is for no token.
    pub fn sampling(&self, dice: u64) -> Result<Sampling, ApiError> {
        Ok(Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            logprobs: (self.logprobs == Some(true)).then(|| self.top_logprobs.unwrap_or(0)),
            ..self.shared().sampling(dice)?
        })
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::ToolChoice;
    use serde_json::json;

    use super::*;

    fn read(more: Value) -> Result<NewChat, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewChat::read(body.as_object().unwrap().clone())
    }

    const F: &str = "f";

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (more, param) in [
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"tools": [{"type": "custom", "function": {"name": "f"}}]}), "tools[0].type"),
            (json!({"store": true}), "store"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
                "messages[0].content[0].type",
            ),
            (json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}), "messages[0].name"),
        ] {
            let error = read(more.clone()).unwrap_err().body().error;
            assert_eq!((error.param.as_deref(), error.code), (Some(param), Some("unsupported_parameter")), "{more}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (more, param) in [
            (json!({"temperature": 2.5}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": -0.1}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"presence_penalty": 2.1}), "presence_penalty"),
            (json!({"frequency_penalty": -3}), "frequency_penalty"),
            (json!({"logit_bias": {"50256": -101}}), "logit_bias.50256"),
            (json!({"logit_bias": {"the": 1}}), "logit_bias.the"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"stop": [1]}), "stop[0]"),
            (json!({"stop": 1}), "stop"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 1, "max_completion_tokens": 1}), "max_tokens"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": null}]}), "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}),
                "messages[0].content[0].text",
            ),
            (json!({"messages": [{"role": "boss", "content": "x"}]}), "messages[0].role"),
            (json!({"temprature": 1}), "temprature"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
            (json!({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}), "messages[0].tool_call_id"),
            (
                json!({"messages": [{"role": "assistant", "tool_calls":
                    [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "[]"}}]}]}),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}),
                "response_format.json_schema.name",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": "any"}), "tool_choice"),
            (json!({"parallel_tool_calls": true}), "parallel_tool_calls"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [tool(F), tool(F)]}), "tools[1].function.name"),
            (
                json!({"tools": [tool(F)], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
                "tool_choice",
            ),
        ] {
            let error = read(more.clone()).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{more}: {}", error.message);
        }
    }

    #[test]
    fn what_asks_for_nothing_is_let_through() {
        let chat = read(json!({"n": 1, "tools": null, "logprobs": false, "frequency_penalty": 0, "user": "ann",
            "metadata": {"a": "b"}, "store": false, "response_format": {"type": "text"}, "stop": null, "seed": -1,
            "max_completion_tokens": 7, "stream": true, "stream_options": {"include_usage": true}}))
        .unwrap();
        let sampling = chat.sampling(3).unwrap();
        assert_eq!((sampling.temperature, sampling.seed, sampling.max_tokens), (1.0, u64::MAX, Some(7)));
        assert!(chat.streams() && chat.streams_usage());
        let sampling = |more| read(more).unwrap().sampling(3).unwrap();
        assert_eq!(sampling(json!({"stop": "x"})).stop, ["x"]);
        assert_eq!(sampling(json!({})).seed, 3);
        assert_eq!(sampling(json!({"logprobs": true, "top_logprobs": 4})).logprobs, Some(4));
        assert_eq!(sampling(json!({"logit_bias": {"7": -2}})).logit_bias, [(7, -2.0)].into());
    }

    #[test]
    fn parts_are_put_together_and_developers_are_the_system() {
        let chat = read(json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": ""},
        ]}))
        .unwrap();
        let messages = chat.chat_messages().unwrap();
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "ab"));
    }

    #[test]
    fn an_answer_s_message_may_be_given_back_as_it_came() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}});
        let chat = read(json!({"messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
             "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]}))
        .unwrap();
        let messages = chat.chat_messages().unwrap();
        let calls = messages[1].tool_calls.as_ref().unwrap();
        assert_eq!((messages[1].content.as_str(), &calls[0]["function"]["arguments"]), ("", &json!({"x": 1})));
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn tools_are_chosen_from_as_the_model_likes_unless_told_otherwise() {
        let choice = |more: Value| {
            let mut body = json!({"tools": [tool("f"), tool("g")]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(body).unwrap().tools().unwrap().unwrap()
        };
        assert_eq!(choice(json!({})).choice, ToolChoice::Auto);
        assert!(choice(json!({})).parallel && !choice(json!({"parallel_tool_calls": false})).parallel);
        let named = json!({"tool_choice": {"type": "function", "function": {"name": "g"}}});
        assert_eq!(choice(named).choice, ToolChoice::Named { name: "g".into() });
        assert_eq!(choice(json!({})).shown[1], tool("g"));
        assert!(read(json!({"tools": []})).unwrap().tools().unwrap().is_none());
    }
}
