//! Requests for a response: OpenAI's request body, as far as it is supported without stored responses. A request is
//! translated to a chat.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    input::{ResponseInput, Translated, check_item},
    options::{ResponseTool, TextOptions, check_tool, tool_choice_to_chat},
};
use crate::{
    error::InferenceError,
    json,
    wire::{
        chat::{ChatRequest, NewChat},
        ignored::remove_ignored,
        param_names::ParamNames,
    },
};

/// The value of `include` that requests log probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";
/// A value of `include` that concerns only reasoning items, which no response here has.
const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";

/// The request body for a response.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewResponse {
    /// The name of a base model or of a fine-tuned model.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The input: a string, or items: messages, function calls and their outputs. No response is stored, so the input
    /// holds the whole conversation.
    pub input: ResponseInput,
    /// A system message in front of the input.
    pub instructions: Option<String>,
    /// The maximum number of tokens in the response. Defaults to as many as the context length allows.
    pub max_output_tokens: Option<u64>,
    /// The sampling temperature, from 0 (always the most likely token) to 2. Defaults to 1.
    pub temperature: Option<f64>,
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are considered. Defaults
    /// to 1.
    pub top_p: Option<f64>,
    /// The options of the text.
    pub text: Option<TextOptions>,
    /// The functions that the model may call.
    pub tools: Option<Vec<ResponseTool>>,
    /// The tool choice: `none`, `auto` (the default), `required`, or `{"type": "function", "name": …}`.
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    /// Allows several calls in a response that must call a function or whose tools are strict. Defaults to `true`.
    pub parallel_tool_calls: Option<bool>,
    /// Additional output: `message.output_text.logprobs` returns the log probability of each token.
    pub include: Option<Vec<String>>,
    /// The number of most likely tokens to return at each position, from 0 to 20. Requires
    /// `message.output_text.logprobs` in `include`.
    pub top_logprobs: Option<u32>,
    /// Labels, which the response repeats.
    pub metadata: Option<BTreeMap<String, String>>,
    /// A label of the user, which the response repeats.
    pub user: Option<String>,
    /// A label of the user, which the response repeats.
    pub safety_identifier: Option<String>,
    /// A label of similar requests, which the response repeats.
    pub prompt_cache_key: Option<String>,
    /// Accepted, but nothing is stored: the response has `store: false`, and the header `attune-stored: false` if this
    /// is `true`.
    pub store: Option<bool>,
    /// If `true`, streams the response as server-sent events.
    pub stream: Option<bool>,
}

/// A checked request for a response.
#[derive(Debug, Clone)]
pub struct ResponseRequest {
    /// The chat that the request is translated to.
    pub chat: ChatRequest,
    /// The settings that the response repeats.
    pub settings: ResponseSettings,
    /// The names of the chat's parameters in the request.
    pub names: ParamNames,
}

/// The settings of a request that its response repeats.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseSettings {
    /// The system message in front of the input.
    pub instructions: Option<String>,
    /// The maximum number of tokens in the response.
    pub max_output_tokens: Option<u64>,
    /// The sampling temperature.
    pub temperature: f64,
    /// The nucleus.
    pub top_p: f64,
    /// The options of the text.
    pub text: TextOptions,
    /// The functions that the model may call.
    pub tools: Vec<ResponseTool>,
    /// The tool choice.
    #[schema(value_type = Object)]
    pub tool_choice: Value,
    /// `true` if several calls are allowed.
    pub parallel_tool_calls: bool,
    /// The number of most likely tokens at each position.
    pub top_logprobs: u32,
    /// The labels of the request.
    pub metadata: BTreeMap<String, String>,
    /// The label of the user.
    pub user: Option<String>,
    /// The label of the user.
    pub safety_identifier: Option<String>,
    /// The label of similar requests.
    pub prompt_cache_key: Option<String>,
}

/// A function that returns whether a field's value requests only the default behavior.
type AsksNothing = fn(&Value) -> bool;

/// Unsupported fields: the name, a test for values that request only the default behavior, and the reason to refuse any
/// other.
const UNSUPPORTED_FIELDS: [(&str, AsksNothing, &str); 14] = [
    ("previous_response_id", |_| false, "responses are not stored; send the whole conversation as 'input'"),
    ("conversation", |_| false, "conversations are not stored; send the whole conversation as 'input'"),
    ("background", |v| *v == false, "responses are not stored, so they cannot be fetched later; use 'stream'"),
    ("background_options", |_| false, "responses are not generated in the background"),
    ("prompt", |_| false, "prompts are not stored; use 'instructions' and 'input'"),
    ("reasoning", sets_nothing, "the models here have no reasoning effort"),
    ("max_tool_calls", |_| false, "it limits built-in tools, which do not exist here"),
    ("truncation", |v| v == "disabled", "an input that is longer than the context is an error; shorten it"),
    ("context_management", |_| false, "the input is not compacted"),
    ("moderation", |_| false, "responses are not moderated"),
    ("image", |_| false, "images are not supported"),
    ("prompt_cache_options", |_| false, "how prompts are cached cannot be chosen"),
    ("access_programs", |_| false, "there are no access programs"),
    ("stream_options", asks_no_obfuscation, "only 'include_obfuscation': false is supported"),
];

fn sets_nothing(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| fields.values().all(Value::is_null))
}

fn asks_no_obfuscation(value: &Value) -> bool {
    let fields = value.as_object();
    fields.is_some_and(|fields| fields.iter().all(|(name, value)| name == "include_obfuscation" && *value == false))
}

impl NewResponse {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(mut fields: Map<String, Value>) -> Result<ResponseRequest, InferenceError> {
        check_labels(&mut fields)?;
        refuse_unsupported(&mut fields)?;
        for (i, item) in list(&mut fields, "input").enumerate() {
            check_item(i, item)?;
        }
        for (i, tool) in list(&mut fields, "tools").enumerate() {
            check_tool(i, tool)?;
        }
        let new: Self = json::from_value(Value::Object(fields))?;
        new.checked()
    }

    fn checked(self) -> Result<ResponseRequest, InferenceError> {
        let with_logprobs = self.includes_logprobs()?;
        let Translated { messages, mut names, .. } = Translated::new(self.instructions.as_deref(), &self.input);
        let tools = self.tools.unwrap_or_default();
        names.extend((0..tools.len()).map(|i| (format!("tools[{i}].function"), format!("tools[{i}]"))));
        names.extend(RENAMED.map(|(of_chat, name)| (of_chat.to_owned(), name.to_owned())));
        let text = self.text.unwrap_or_default();
        let mut chat = fields([
            ("model", Some(self.model.into())),
            ("messages", Some(messages.into())),
            ("max_completion_tokens", self.max_output_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("response_format", Some(text.format.to_chat())),
            ("logprobs", with_logprobs.then(|| true.into())),
            ("top_logprobs", self.top_logprobs.filter(|_| with_logprobs).map(Value::from)),
            ("user", self.user.as_deref().map(Value::from)),
            ("safety_identifier", self.safety_identifier.as_deref().map(Value::from)),
            ("prompt_cache_key", self.prompt_cache_key.as_deref().map(Value::from)),
            ("store", self.store.map(Value::from)),
            ("stream", self.stream.map(Value::from)),
        ]);
        let choice = self.tool_choice.unwrap_or_else(|| "auto".into());
        // Without tools, these values request only what happens anyway.
        if !tools.is_empty() || (choice != "auto" && choice != "none") {
            chat.insert("tool_choice".into(), tool_choice_to_chat(&choice)?);
        }
        if !tools.is_empty() {
            chat.insert("tools".into(), tools.iter().map(ResponseTool::to_chat).collect());
            chat.extend(self.parallel_tool_calls.map(|parallel| ("parallel_tool_calls".to_owned(), parallel.into())));
        }
        let names = ParamNames(names);
        let chat = NewChat::read(chat).map_err(|error| names.apply(error))?;
        let keys = [&self.prompt_cache_key, &self.safety_identifier, &self.user];
        let split_key = keys.into_iter().flatten().next().cloned();
        let chat = ChatRequest { split_key, ..chat };
        let settings = ResponseSettings {
            instructions: self.instructions,
            max_output_tokens: self.max_output_tokens,
            temperature: chat.sampling.temperature,
            top_p: chat.sampling.top_p,
            text,
            tools,
            tool_choice: choice,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            top_logprobs: self.top_logprobs.unwrap_or(0),
            metadata: self.metadata.unwrap_or_default(),
            user: self.user,
            safety_identifier: self.safety_identifier,
            prompt_cache_key: self.prompt_cache_key,
        };
        Ok(ResponseRequest { chat, settings, names })
    }

    /// Returns whether log probabilities are requested.
    fn includes_logprobs(&self) -> Result<bool, InferenceError> {
        let included = self.include.as_deref().unwrap_or_default();
        if let Some(i) = included.iter().position(|name| ![LOGPROBS, ENCRYPTED_REASONING].contains(&name.as_str())) {
            let at = format!("include[{i}]");
            let message = format!("Unsupported '{at}': allowed: {LOGPROBS}, {ENCRYPTED_REASONING}.");
            return Err(InferenceError::unsupported(at, message));
        }
        let with_logprobs = included.iter().any(|name| name == LOGPROBS);
        if self.top_logprobs.is_some_and(|top| top > 0) && !with_logprobs {
            let message = format!("'top_logprobs' only goes with '{LOGPROBS}' in 'include'.");
            return Err(InferenceError::invalid("top_logprobs", message));
        }
        Ok(with_logprobs)
    }
}

/// The names of a chat's other parameters in the request.
const RENAMED: [(&str, &str); 3] = [
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
];

fn fields<const N: usize>(all: [(&str, Option<Value>); N]) -> Map<String, Value> {
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn list<'a>(fields: &'a mut Map<String, Value>, name: &str) -> impl Iterator<Item = &'a mut Value> {
    fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Checks the labels, as in a chat; removes those that the response does not repeat.
fn check_labels(fields: &mut Map<String, Value>) -> Result<(), InferenceError> {
    let mut labels = Map::new();
    for name in ["user", "safety_identifier", "prompt_cache_key", "metadata"] {
        labels.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    for name in ["prompt_cache_retention", "service_tier"] {
        labels.extend(fields.remove(name).map(|value| (name.to_owned(), value)));
    }
    remove_ignored(&mut labels)
}

fn refuse_unsupported(fields: &mut Map<String, Value>) -> Result<(), InferenceError> {
    for (name, asks_nothing, why) in UNSUPPORTED_FIELDS {
        match fields.remove(name) {
            Some(value) if !value.is_null() && !asks_nothing(&value) => {
                return Err(InferenceError::unsupported(name, format!("Unsupported '{name}': {why}.")));
            }
            _ => {}
        }
    }
    let Some(text) = fields.get_mut("text").and_then(Value::as_object_mut) else { return Ok(()) };
    text.retain(|_, value| !value.is_null());
    if text.contains_key("verbosity") {
        let message = "Unsupported 'text.verbosity': the models here have no verbosity.";
        return Err(InferenceError::unsupported("text.verbosity", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::{Form, Prompt, ToolChoice};
    use serde_json::json;

    use super::*;

    fn read(more: &Value) -> Result<ResponseRequest, InferenceError> {
        let mut body = json!({"model": "m", "input": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewResponse::read(body.as_object().unwrap().clone())
    }

    #[test]
    fn a_plain_request_is_a_chat_with_openais_defaults() {
        let request = read(&json!({"instructions": "Be brief.", "store": true, "truncation": "disabled"})).unwrap();
        let Prompt::Chat { messages, .. } = &request.chat.prompt else { panic!("{:?}", request.chat.prompt) };
        let told: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_deref())).collect();
        assert_eq!(told, [("system", Some("Be brief.")), ("user", Some("hi"))]);
        assert_eq!((request.chat.choices, request.chat.streams, request.chat.store), (1, false, true));
        let settings = serde_json::to_value(request.settings).unwrap();
        assert_eq!(
            settings,
            json!({
                "instructions": "Be brief.", "max_output_tokens": null, "temperature": 1.0, "top_p": 1.0,
                "text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": true,
                "top_logprobs": 0, "metadata": {}, "user": null, "safety_identifier": null, "prompt_cache_key": null,
            })
        );
    }

    #[test]
    fn tools_formats_and_log_probabilities_reach_the_chat() {
        let request = read(&json!({
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
            "text": {"format": {"type": "json_object"}}, "max_output_tokens": 7,
            "include": ["message.output_text.logprobs"], "top_logprobs": 2, "metadata": {"a": "b"}, "user": "ann",
        }))
        .unwrap();
        let tools = request.chat.tools.unwrap();
        assert_eq!((tools.choice, tools.parallel), (ToolChoice::Named { name: "f".into() }, false));
        assert_eq!((request.chat.form, request.chat.sampling.logprobs), (Form::Json, Some(2)));
        assert_eq!(request.chat.sampling.max_tokens, Some(7));
        assert_eq!((request.settings.user.as_deref(), request.settings.metadata["a"].as_str()), (Some("ann"), "b"));
    }

    #[test]
    fn what_is_wrong_is_named_by_the_request_s_field() {
        let tool = |more: Value| {
            let mut tool = json!({"type": "function", "name": "f"});
            tool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "tools": [tool] })
        };
        let call = json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "["});
        for (more, param) in [
            (json!({"input": []}), "input"),
            (json!({"input": 3}), "input"),
            (json!({"input": [{"role": "user", "content": "a"}, call]}), "input[1].arguments"),
            (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"background": true}), "background"),
            (json!({"reasoning": {"effort": "low"}}), "reasoning"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"stream": true, "stream_options": {"include_obfuscation": true}}), "stream_options"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
            (json!({"text": {"format": {"type": "json_schema", "schema": {}}}}), "text.format.name"),
            (json!({"text": {"format": {"type": "json_schema", "name": "a b"}}}), "text.format.name"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"temperature": 3}), "temperature"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"include": ["file_search_call.results"]}), "include[0]"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (tool(json!({"name": "a b"})), "tools[0].name"),
            (tool(json!({"parameters": 3})), "tools[0].parameters"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"user": 3}), "user"),
            (json!({"metadata": {"a": 3}}), "metadata.a"),
            (json!({"messages": []}), "messages"),
        ] {
            let error = read(&more).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{more}: {}", error.message);
            assert!(error.message.contains(param), "{more}: {}", error.message);
        }
    }

    #[test]
    fn values_that_request_nothing_are_accepted() {
        for more in [
            json!({"background": false, "reasoning": {"effort": null}, "previous_response_id": null}),
            json!({"tool_choice": "auto", "parallel_tool_calls": true, "tools": []}),
            json!({"include": ["reasoning.encrypted_content"], "service_tier": "auto", "top_logprobs": 0}),
            json!({"stream": true, "stream_options": {"include_obfuscation": false}}),
        ] {
            assert!(read(&more).is_ok(), "{more}");
        }
    }
}
