//! Chat completion requests: OpenAI's request body, as far as it is supported. An unsupported field is refused by name,
//! never ignored.

use std::collections::BTreeMap;

use attune_domain::{
    dataset::without_nulls,
    serve::{ChatMessage, Form, Sampling, Tools},
    template_kwargs::TemplateKwargs,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat_message::{MessageIn, look_through},
    form::{self, ResponseFormat, ToolChoiceIn, ToolIn},
    ignored::remove_ignored,
    sampling::{Shared, Stop, StreamOptions, check_max_tokens, check_model, range},
};
use crate::{error::ApiError, http::json_body};

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
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are considered. Defaults
    /// to 1.
    pub top_p: Option<f64>,
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
    /// The request's `tools` as received, with keys in their original order: the chat template renders them as in
    /// training rows.
    #[serde(skip)]
    pub shown_tools: Option<Value>,
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
    /// Parses a request body. Removes ignored fields first.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        remove_ignored(&mut fields)?;
        for (name, asks_nothing, why) in UNSUPPORTED_FIELDS {
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
        let shown_tools = fields.get("tools").cloned();
        let chat = Self { shown_tools, ..json_body::from_value(Value::Object(fields))? };
        chat.check()?;
        Ok(chat)
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid("messages", "Invalid 'messages': the list is empty."));
        }
        if self.messages.len() > MOST_MESSAGES {
            let message =
                format!("Invalid 'messages': {} messages; at most {MOST_MESSAGES} are allowed.", self.messages.len());
            return Err(ApiError::invalid("messages", message));
        }
        check_model(&self.model)?;
        self.shared().check()?;
        self.chat_messages()?;
        self.form()?;
        self.tools()?;
        self.template_kwargs()?;
        range("top_logprobs", self.top_logprobs.map(f64::from), 0.0, f64::from(MOST_LOGPROBS))?;
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ApiError::invalid("top_logprobs", "'top_logprobs' only goes with 'logprobs': true."));
        }
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            let message = "'max_tokens' is the older name of 'max_completion_tokens'; give one of them.";
            return Err(ApiError::invalid("max_tokens", message));
        }
        check_max_tokens("max_tokens", self.max_tokens, 1)?;
        check_max_tokens("max_completion_tokens", self.max_completion_tokens, 1)
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

    /// Returns the number of choices to generate.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Returns whether the answer is streamed.
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Returns whether the stream ends with a usage chunk.
    pub fn streams_usage(&self) -> bool {
        self.shared().streams_usage()
    }

    /// Returns the messages in the form of the serving contract.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a message lacks a required field, or has a field that its role does not allow.
    pub fn chat_messages(&self) -> Result<Vec<ChatMessage>, ApiError> {
        self.messages.iter().enumerate().map(|(i, message)| message.to_chat(i)).collect()
    }

    /// Returns the variables that the request sets in the chat template.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: [`TemplateKwargs::check`] refuses them, or `enable_thinking` is set twice with different
    /// values.
    pub fn template_kwargs(&self) -> Result<TemplateKwargs, ApiError> {
        let mut kwargs = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(thinking) = self.enable_thinking
            && kwargs.insert("enable_thinking".into(), thinking.into()).is_some_and(|other| other != thinking)
        {
            let message = "Invalid 'enable_thinking': 'chat_template_kwargs' has another value of it.";
            return Err(ApiError::invalid("enable_thinking", message));
        }
        Ok(TemplateKwargs::check(&kwargs)?)
    }

    /// Returns the required format of the answer's text.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn form(&self) -> Result<Form, ApiError> {
        self.response_format.as_ref().map_or(Ok(Form::Free), ResponseFormat::form)
    }

    /// Returns the tools that the model may call, `None` if there are none.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn tools(&self) -> Result<Option<Tools>, ApiError> {
        let given = self.tools.as_deref().unwrap_or_default();
        if self.parallel_tool_calls.is_some() && given.is_empty() {
            let message = "'parallel_tool_calls' only goes with 'tools'.";
            return Err(ApiError::invalid("parallel_tool_calls", message));
        }
        let shown = self.shown_tools.clone().map(without_nulls).unwrap_or_default();
        form::tools(given, shown, self.tool_choice.as_ref(), self.parallel_tool_calls)
    }

    /// Returns the sampling parameters. The argument is the seed if the request sets none.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a key of `logit_bias` is not a token ID.
    pub fn sampling(&self, default_seed: u64) -> Result<Sampling, ApiError> {
        Ok(Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            logprobs: (self.logprobs == Some(true)).then(|| self.top_logprobs.unwrap_or(0)),
            ..self.shared().sampling(default_seed)?
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
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
                "messages[0].content[0].type",
            ),
            (json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role"),
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

    /// Asserts that `beyond` is refused with the field's name, and that `most` is accepted.
    fn assert_bound(most: Value, beyond: Value, param: &str) {
        let refused = read(beyond).unwrap_err().body().error;
        assert_eq!(refused.param.as_deref(), Some(param), "{}", refused.message);
        assert!(refused.message.len() < 500, "{param}: {}", refused.message);
        assert!(read(most).is_ok(), "{param}");
    }

    /// A value one step past each bound is refused with the field's name; the bound itself is accepted.
    #[test]
    fn limit_of_every_field_of_a_chat() {
        let text = |length: usize| "x".repeat(length);
        let stops = |count: usize| json!({"stop": vec!["x"; count]});
        let numbered = |count: usize, value: Value| -> Map<String, Value> {
            (0..count).map(|at| (at.to_string(), value.clone())).collect()
        };
        let biases = |count: usize| json!({"logit_bias": numbered(count, json!(1))});
        let pairs = |count: usize| json!({"metadata": numbered(count, json!("v"))});
        let messages = |count: usize| json!({"messages": vec![json!({"role": "user", "content": "x"}); count]});
        let tools = |count: usize| json!({"tools": (0..count).map(|at| tool(&format!("f{at}"))).collect::<Vec<_>>()});
        let bytes_of_tools = |length: usize| {
            let mut wide = tool(F);
            wide["function"]["description"] = json!(text(
                length - serde_json::to_string(&json!([wide])).unwrap().len() - r#""description":"","#.len()
            ));
            json!({"tools": [wide]})
        };
        let format = |schema: Value| {
            let schema = json!({"name": "a", "schema": schema});
            json!({"response_format": {"type": "json_schema", "json_schema": schema}})
        };
        let deep = |depth: usize| format((1..depth).fold(json!({}), |inner, _| json!({"not": inner})));
        let wide = |length: usize| format(json!({"a": text(length - r#"{"a":""}"#.len())}));
        let calls = |count: usize, id: usize| {
            let call = json!({"id": text(id), "type": "function", "function": {"name": "f", "arguments": "{}"}});
            json!({"messages": [{"role": "assistant", "tool_calls": vec![call; count]}]})
        };
        let named = |name: usize| json!({"messages": [{"role": "user", "content": "x", "name": text(name)}]});
        let result = |id: usize| json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": text(id)}]});
        for (most, beyond, param) in [
            (json!({"n": 128}), json!({"n": 129}), "n"),
            (json!({"temperature": 2}), json!({"temperature": 2.01}), "temperature"),
            (json!({"top_p": 1}), json!({"top_p": 1.01}), "top_p"),
            (json!({"presence_penalty": -2}), json!({"presence_penalty": -2.01}), "presence_penalty"),
            (json!({"frequency_penalty": 2}), json!({"frequency_penalty": 2.01}), "frequency_penalty"),
            (stops(4), stops(5), "stop"),
            (json!({"stop": text(1024)}), json!({"stop": text(1025)}), "stop"),
            (biases(1024), biases(1025), "logit_bias"),
            (json!({"logit_bias": {"1": -100}}), json!({"logit_bias": {"1": -100.5}}), "logit_bias.1"),
            (
                json!({"logprobs": true, "top_logprobs": 20}),
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
            ),
            (json!({"max_tokens": 1_u64 << 31}), json!({"max_tokens": (1_u64 << 31) + 1}), "max_tokens"),
            (
                json!({"max_completion_tokens": 1}),
                json!({"max_completion_tokens": 1_u64 << 40}),
                "max_completion_tokens",
            ),
            (json!({"model": text(512)}), json!({"model": text(513)}), "model"),
            (messages(4096), messages(4097), "messages"),
            (calls(128, 1), calls(129, 1), "messages[0].tool_calls"),
            (calls(1, 256), calls(1, 257), "messages[0].tool_calls[0].id"),
            (result(256), result(257), "messages[0].tool_call_id"),
            (named(256), named(257), "messages[0].name"),
            (tools(128), tools(129), "tools"),
            (bytes_of_tools(256 << 10), bytes_of_tools((256 << 10) + 1), "tools"),
            (json!({"tools": [tool(&text(64))]}), json!({"tools": [tool(&text(65))]}), "tools[0].function.name"),
            (wide(64 << 10), wide((64 << 10) + 1), "response_format.json_schema.schema"),
            (deep(48), deep(49), "response_format.json_schema.schema"),
            (json!({"user": text(512)}), json!({"user": text(513)}), "user"),
            (json!({"prompt_cache_key": text(512)}), json!({"prompt_cache_key": text(513)}), "prompt_cache_key"),
            (json!({"safety_identifier": "a"}), json!({"safety_identifier": {"a": 1}}), "safety_identifier"),
            (pairs(16), pairs(17), "metadata"),
            (json!({"metadata": {text(64): "v"}}), json!({"metadata": {text(65): "v"}}), "metadata"),
            (json!({"metadata": {"a": text(512)}}), json!({"metadata": {"a": text(513)}}), "metadata"),
        ] {
            assert_bound(most, beyond, param);
        }
    }

    #[test]
    fn limit_of_the_template_kwargs_of_a_chat() {
        let kwargs = |count: usize, length: usize| {
            let all: Map<_, _> = (0..count).map(|at| (format!("k{at}"), json!("x".repeat(length)))).collect();
            json!({"chat_template_kwargs": all})
        };
        let around = r#"{"k0":""}"#.len();
        assert_bound(kwargs(16, 1), kwargs(17, 1), "chat_template_kwargs");
        assert_bound(kwargs(1, 4096 - around), kwargs(1, 4097 - around), "chat_template_kwargs");
        for refused in [json!({"messages": []}), json!({"k0": {"a": 1}})] {
            assert_bound(kwargs(1, 1), json!({"chat_template_kwargs": refused}), "chat_template_kwargs");
        }
        let twice = json!({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": 1}});
        assert_bound(json!({"enable_thinking": true}), twice, "enable_thinking");
    }

    /// The stop string of the attack, 3.8 MB, is refused before it is processed.
    #[test]
    fn attack_a06_a_stop_string_of_megabytes_is_refused() {
        let refused = read(json!({"n": 128, "stop": ["z".repeat(3_800_000)]})).unwrap_err().body().error;
        assert_eq!(refused.message, "Invalid 'stop': a stop string has 3800000 bytes; at most 1024 are allowed.");
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
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_deref()), ("system", Some("ab")));
    }

    #[test]
    fn case_18_a_speaker_s_name_is_handed_on() {
        let user = |name: Value| json!({"messages": [{"role": "user", "content": "hi", "name": name}]});
        let name = |name: Value| read(user(name)).unwrap().chat_messages().unwrap()[0].name.clone();
        assert_eq!(name(json!("ann")).as_deref(), Some("ann"));
        assert_eq!(name(Value::Null), None);
        assert!(read(user(json!(7))).is_err());
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
        assert_eq!((messages[1].content.as_deref(), &calls[0]["function"]["arguments"]), (None, &json!({"x": 1})));
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
        let given = r#"[{"function":{"strict":true,"parameters":{"type":"object"},"name":"f"},"type":"function"}]"#;
        let nulls = given.replace("\"name\"", "\"description\":null,\"name\"");
        let body = json!({"tools": serde_json::from_str::<Value>(&nulls).unwrap()});
        assert_eq!(choice(body).shown.to_string(), given, "as rows have them");
        assert!(read(json!({"tools": []})).unwrap().tools().unwrap().is_none());
    }
}
