//! Requests and models from bug reports of other projects.

use attune_domain::{
    serve::{
        ChatMessage, FinishReason, Form, GenerateEvent, GenerateRequest, Priority, Prompt, Sampling, Tool, ToolChoice,
        Tools,
    },
    template_kwargs::TemplateKwargs,
};
use serde_json::Value;

use crate::{
    door::{app, calls, events, reason, said, scores},
    world::{World, case_folder},
};

/// Converts an API request body to a replica's request.
fn request(body: &Value) -> GenerateRequest {
    let prompt = match body.get("prompt").and_then(Value::as_str) {
        Some(text) => Prompt::Text { text: text.into() },
        None => Prompt::Chat {
            messages: body["messages"].as_array().unwrap().iter().map(message).collect(),
            template_kwargs: TemplateKwargs::default(),
        },
    };
    let bias = body["logit_bias"].as_object().into_iter().flatten();
    let format = body.get("response_format").map(|format| &format["json_schema"]);
    GenerateRequest {
        request_id: "case".into(),
        project: "p".into(),
        priority: Priority::Live,
        adapter: None,
        keep: None,
        prompt,
        truncate: None,
        echo: false,
        form: format.map_or(Form::Free, |format| Form::Schema {
            schema: format["schema"].clone(),
            strict: format["strict"].as_bool().unwrap(),
        }),
        tools: body.get("tools").map(|shown| Tools {
            shown: shown.clone(),
            definitions: shown.as_array().unwrap().iter().map(tool).collect(),
            choice: ToolChoice::Auto,
            parallel: true,
        }),
        choices: 1,
        sampling: Sampling {
            temperature: 0.0,
            max_tokens: body["max_tokens"].as_u64(),
            logprobs: body["logprobs"].as_u64().map(|top| u32::try_from(top).unwrap()),
            logit_bias: bias.map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap())).collect(),
            ..Sampling::default()
        },
    }
}

fn message(message: &Value) -> ChatMessage {
    let text = |field: &str| message[field].as_str().unwrap().to_owned();
    ChatMessage { role: text("role"), content: Some(text("content")), tool_calls: None, tool_call_id: None, name: None }
}

fn tool(tool: &Value) -> Tool {
    let function = &tool["function"];
    let name = function["name"].as_str().unwrap().to_owned();
    Tool { name, parameters: function.get("parameters").cloned(), strict: function["strict"] == true }
}

fn body(case: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(case_folder(case).join(file)).unwrap()).unwrap()
}

const CASE_01: &str = "01-json-answer-read-as-tool-call";

#[tokio::test]
async fn case_01_a_json_answer_stays_text_and_every_answer_of_the_schema_can_be_given() {
    let world = World::of_case(CASE_01).await;
    let app = app(&world);
    for (file, want) in [
        ("free.json", r#"{"name": "Alice", "age": 30}"#),
        ("schema.json", r#"{"name": "Alice", "age": 30}"#),
        ("schema-spaces.json", r#"{ "name" : "Alice" , "age" : 30 }"#),
        ("schema-other-key.json", r#"{"verdict":"ok"}"#),
    ] {
        let with_tools = body(CASE_01, file);
        let mut without = with_tools.clone();
        without.as_object_mut().unwrap().remove("tools");
        for asked in [without, with_tools] {
            let told = events(&app, &request(&asked)).await;
            // A space before the first brace is JSON whitespace, which the logit biases of one request prefer.
            assert_eq!((said(&told).trim_start(), calls(&told).len()), (want, 0), "{file}: {told:?}");
            assert_eq!(reason(&told), FinishReason::Stop, "{file}");
        }
    }
}

/// The control: a call is still detected, whether required or not, with any spacing, together with a schema, and with
/// references.
#[tokio::test]
async fn case_01_a_call_is_still_found_and_still_enforced() {
    let world = World::of_case(CASE_01).await;
    let app = app(&world);
    for file in ["free.json", "schema.json"] {
        let mut required = request(&body(CASE_01, file));
        let tools = required.tools.as_mut().unwrap();
        tools.choice = ToolChoice::Required;
        required.sampling.max_tokens = Some(200);
        let told = events(&app, &required).await;
        assert_eq!(calls(&told).len(), 1, "{told:?}");
        let arguments: Value = serde_json::from_str(&calls(&told)[0].1).unwrap();
        assert_eq!((said(&told).as_str(), arguments), ("", serde_json::json!({"city": "Oslo"})), "{file}");
        assert_eq!(reason(&told), FinishReason::ToolCalls, "{file}");
        let mut referring = required.clone();
        referring.tools.as_mut().unwrap().definitions[0].parameters = Some(serde_json::json!({
            "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"],
            "additionalProperties": false, "$defs": {"City": {"enum": ["Oslo"]}}}));
        assert_eq!(calls(&events(&app, &referring).await), calls(&told), "{file}");
    }
    // With a bias towards the letters of a call, an answer that is constrained to a schema may call a tool too.
    let mut call = request(&body(CASE_01, "schema.json"));
    call.sampling.logit_bias = "get_weather".bytes().map(|byte| (u32::from(byte), 60.0)).collect();
    // Exclude the token that is a whole answer, and the first letter of the name in it.
    call.sampling.logit_bias.extend([(u32::from(b'A'), -100.0), (259, -100.0)]);
    call.sampling.max_tokens = Some(200);
    let told = events(&app, &call).await;
    assert_eq!(calls(&told)[0].0, "get_weather", "{told:?}");
}

#[tokio::test]
async fn case_02_what_follows_broken_bytes_is_reported() {
    const CASE: &str = "02-broken-bytes-silence-the-answer";
    let world = World::of_case(CASE).await;
    let told = events(&app(&world), &request(&body(CASE, "request.json"))).await;
    assert_eq!(said(&told), "\n\u{fffd}a\n\u{fffd}a\n\u{fffd}a");
    let tokens: Vec<Vec<u8>> = scores(&told).into_iter().map(|token| token.bytes).collect();
    assert_eq!(tokens.concat(), b"\n\xf0a\n\xf0a\n\xf0a");
    assert!(told.contains(&GenerateEvent::Done { completion_tokens: 9 }), "{told:?}");
    // Each letter is sent when it is sampled, and not at the end.
    let pieces = told.iter().filter(|event| matches!(event, GenerateEvent::Piece { text, .. } if text.contains('a')));
    assert_eq!(pieces.count(), 3);
}
