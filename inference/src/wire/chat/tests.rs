//! Tests of chat completion requests.

use attune_domain::serve::ToolChoice;
use serde_json::json;

use super::*;

fn read(more: Value) -> Result<ChatRequest, InferenceError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    NewChat::read_with(body.as_object().unwrap().clone(), 3)
}

/// Returns the messages of a request.
fn messages(chat: ChatRequest) -> Vec<ChatMessage> {
    let Prompt::Chat { messages, .. } = chat.prompt else { panic!("not a chat") };
    messages
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
        (json!({"response_format": {"type": "grammar"}}), "response_format.syntax"),
        (json!({"response_format": {"type": "text", "definition": "a"}}), "response_format.definition"),
        (json!({"response_format": {"type": "grammar", "json_schema": {"name": "a"}}}), "response_format.json_schema"),
        (json!({"structured_outputs": {"guided": 1}}), "structured_outputs.guided"),
        (json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}), "structured_outputs"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": -0.1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"n": 2, "max_tokens": 1 << 20}), "n"),
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
        (json!({"tools": [tool(F)], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
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
        wide["function"]["description"] =
            json!(text(length - serde_json::to_string(&json!([wide])).unwrap().len() - r#""description":"","#.len()));
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
    let deep_call = |depth: usize| {
        let arguments = (1..depth).fold(json!({}), |inner, _| json!({"a": inner})).to_string();
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        json!({"messages": [{"role": "assistant", "tool_calls": [call]}]})
    };
    let named = |name: usize| json!({"messages": [{"role": "user", "content": "x", "name": text(name)}]});
    let result = |id: usize| json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": text(id)}]});
    for (most, beyond, param) in [
        (json!({"n": 128}), json!({"n": 129}), "n"),
        (json!({"temperature": 2}), json!({"temperature": 2.01}), "temperature"),
        (json!({"top_p": 1}), json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": 1 << 20}), json!({"top_k": (1 << 20) + 1}), "top_k"),
        (json!({"min_p": 1}), json!({"min_p": 1.01}), "min_p"),
        (json!({"repetition_penalty": 100}), json!({"repetition_penalty": 100.1}), "repetition_penalty"),
        (json!({"n": 128, "max_tokens": 8192}), json!({"n": 128, "max_tokens": 8193}), "n"),
        (json!({"presence_penalty": -2}), json!({"presence_penalty": -2.01}), "presence_penalty"),
        (json!({"frequency_penalty": 2}), json!({"frequency_penalty": 2.01}), "frequency_penalty"),
        (stops(4), stops(5), "stop"),
        (json!({"stop": text(1024)}), json!({"stop": text(1025)}), "stop"),
        (biases(1024), biases(1025), "logit_bias"),
        (json!({"logit_bias": {"1": -100}}), json!({"logit_bias": {"1": -100.5}}), "logit_bias.1"),
        (json!({"logprobs": true, "top_logprobs": 20}), json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"max_tokens": 1_u64 << 31}), json!({"max_tokens": (1_u64 << 31) + 1}), "max_tokens"),
        (json!({"max_completion_tokens": 1}), json!({"max_completion_tokens": 1_u64 << 40}), "max_completion_tokens"),
        (json!({"model": text(512)}), json!({"model": text(513)}), "model"),
        (messages(4096), messages(4097), "messages"),
        (calls(128, 1), calls(129, 1), "messages[0].tool_calls"),
        (calls(1, 256), calls(1, 257), "messages[0].tool_calls[0].id"),
        (deep_call(48), deep_call(49), "messages[0].tool_calls[0].function.arguments"),
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
fn what_requests_nothing_is_let_through() {
    let chat = read(json!({"n": 1, "tools": null, "logprobs": false, "frequency_penalty": 0, "user": "ann",
        "metadata": {"a": "b"}, "store": false, "response_format": {"type": "text"}, "stop": null, "seed": -1,
        "max_completion_tokens": 7, "stream": true, "stream_options": {"include_usage": true}}))
    .unwrap();
    let sampling = &chat.sampling;
    assert_eq!((sampling.temperature, sampling.seed, sampling.max_tokens), (1.0, u64::MAX, Some(7)));
    assert!(chat.streams && chat.with_usage && !chat.store);
    let sampling = |more| read(more).unwrap().sampling;
    assert_eq!(sampling(json!({"stop": "x"})).stop, ["x"]);
    assert_eq!(sampling(json!({})).seed, 3);
    assert_eq!(sampling(json!({"logprobs": true, "top_logprobs": 4})).logprobs, Some(4));
    assert_eq!(sampling(json!({"logit_bias": {"7": -2}})).logit_bias, [(7, -2.0)].into());
    let all = sampling(json!({"top_k": -1, "min_p": 0, "repetition_penalty": 1}));
    assert_eq!(all, sampling(json!({"top_k": 0})));
    assert_eq!(all, sampling(json!({})));
    let set = sampling(json!({"top_k": 4, "min_p": 0.5, "repetition_penalty": 1.3}));
    assert_eq!((set.top_k, set.min_p, set.repetition_penalty), (Some(4), 0.5, 1.3));
}

#[test]
fn a_form_is_a_schema_a_grammar_or_a_structured_output() {
    let form = |more| read(more).unwrap().form;
    let lark = Form::Lark { definition: "start: \"a\"".into() };
    let grammar = json!({"type": "grammar", "syntax": "lark", "definition": "start: \"a\""});
    assert_eq!(form(json!({"response_format": grammar})), lark);
    assert_eq!(form(json!({"structured_outputs": {"grammar": "start: \"a\""}})), lark);
    assert_eq!(form(json!({"response_format": {"type": "json_object"}})), Form::Json);
    assert_eq!(form(json!({})), Form::Free);
}

#[test]
fn parts_are_put_together_and_developers_are_the_system() {
    let chat = read(json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": ""},
    ]}))
    .unwrap();
    let messages = messages(chat);
    assert_eq!((messages[0].role.as_str(), messages[0].content.as_deref()), ("system", Some("ab")));
}

#[test]
fn case_18_a_speaker_s_name_is_handed_on() {
    let user = |name: Value| json!({"messages": [{"role": "user", "content": "hi", "name": name}]});
    let name = |name: Value| messages(read(user(name)).unwrap())[0].name.clone();
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
    let messages = messages(chat);
    let calls = messages[1].tool_calls.as_ref().unwrap();
    assert_eq!((messages[1].content.as_deref(), &calls[0]["function"]["arguments"]), (None, &json!({"x": 1})));
    assert_eq!(messages[2].tool_call_id.as_deref(), Some("1"));
}

#[test]
fn tools_are_chosen_from_as_the_model_likes_unless_set_otherwise() {
    let choice = |more: Value| {
        let mut body = json!({"tools": [tool("f"), tool("g")]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(body).unwrap().tools.unwrap()
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
    assert!(read(json!({"tools": []})).unwrap().tools.is_none());
}
