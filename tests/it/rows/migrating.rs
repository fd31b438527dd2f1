//! Files and rows in the formats of other programs: byte order marks, participants' names, tool calls.

use std::{fs, time::Duration};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::create;

const MARK: &str = "\u{feff}";

async fn post(platform: &Platform, path: &str, body: Value) -> (u16, Value) {
    platform.call(Method::POST, path, Some(body)).await.unwrap()
}

/// Uploads a file with this name; returns its ID, or the error message.
fn upload(platform: &Platform, name: &str, content: &str, purpose: &str) -> Result<String, String> {
    let path = platform.folder().path(name);
    fs::write(&path, content).unwrap();
    let output = platform.attune(&["files", "upload", text(&path).unwrap(), "--purpose", purpose, "--json"]).unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let file: Value = serde_json::from_slice(&output.stdout).unwrap();
    Ok(file["id"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn case_08_a_byte_order_mark_is_the_same_at_every_entry_point() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let rows = tiny::rows(2);
    let (first, second) = rows.trim().split_once('\n').unwrap();
    for (name, content) in [
        ("lines.jsonl", format!("{MARK}{rows}")),
        ("joined.jsonl", format!("{MARK}{first}\n{MARK}{second}\n")),
        ("list.json", format!("{MARK}[{first},{second}]")),
        ("table.csv", format!("{MARK}prompt,completion\nä,ö\n")),
    ] {
        let file = upload(&platform, name, &content, "fine-tune").unwrap();
        let (status, shown) =
            post(&platform, &format!("/v1/files/{file}/preview"), json!({"model": "tiny", "rows": [1]})).await;
        let pieces = shown["data"][0]["pieces"].as_array().unwrap_or_else(|| panic!("{status} {shown}"));
        assert!(pieces.iter().all(|piece| !piece.as_str().unwrap().contains(MARK)), "{name}: {shown}");
    }
    batch_with_a_mark(&platform).await;

    // A request body.
    let body = format!("{MARK}{}", json!({"model": "tiny", "prompt": "a", "max_tokens": 1}));
    let request = attune_tests::platform::client().post(format!("{}/v1/completions", platform.url));
    let request = request.bearer_auth(&platform.api_key).header("content-type", "application/json").body(body);
    assert_eq!(request.send().await.unwrap().status(), 200);

    // A base model's JSON file, which transformers would not read either.
    let folder = platform.folder().path("marked");
    tiny::write(&folder, 7).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    fs::write(folder.join("config.json"), format!("{MARK}{config}")).unwrap();
    let output = platform.attune(&["models", "import", text(&folder).unwrap(), "--name", "marked"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("byte order mark"), "{said}");
}

async fn batch_with_a_mark(platform: &Platform) {
    let row = |id: &str| {
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}})
    };
    let content = format!("{MARK}{}\n{}\n", row("r1"), row("r2"));
    let file = upload(platform, "batch.jsonl", &content, "batch").unwrap();
    let asked = json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let (_, batch) = post(platform, "/v1/batches", asked).await;
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let mut batch = batch;
    for _ in 0..600 {
        batch = platform.call(Method::GET, &path, None).await.unwrap().1;
        if matches!(batch["status"].as_str(), Some("completed" | "failed" | "expired")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(2)), "{batch}");
}

/// A template that prints a message's `name`.
const NAMED: &str = "\
    {% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.name is defined and m.name %}{{ ' ' + m.name }}\
    {% endif %}{{ '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

#[tokio::test(flavor = "multi_thread")]
async fn case_18_a_speaker_has_a_name_in_rows_and_chats() {
    let platform = Platform::start().unwrap();
    let folder = platform.folder().path("named");
    tiny::write(&folder, 7).unwrap();
    fs::write(folder.join("chat_template.jinja"), NAMED).unwrap();
    platform.json(&["models", "import", text(&folder).unwrap(), "--name", "named"]).unwrap();
    let row = json!({"messages": [{"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": "Who speaks?"}, {"role": "assistant", "content": "ann"}]});
    let file = platform.upload(&format!("{row}\n")).unwrap();
    let (_, shown) = post(&platform, &format!("/v1/files/{file}/preview"), json!({"model": "named"})).await;
    let pieces: String =
        shown["data"][0]["pieces"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
    let whole = "\
        <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user ann\nWho \
        speaks?<|im_end|>\n<|im_start|>assistant\nann<|im_end|>\n";
    assert_eq!(pieces, whole);
    let asked = async |message: Value| {
        let body = json!({"model": "named", "max_tokens": 1, "messages": [message]});
        let (status, said) = post(&platform, "/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{said}");
        said["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let named = asked(json!({"role": "user", "name": "ann", "content": "Who speaks?"})).await;
    let plain = asked(json!({"role": "user", "name": null, "content": "Who speaks?"})).await;
    assert_eq!(named, plain + 4, "a byte a token");
    let (developer, system) = (
        asked(json!({"role": "developer", "content": "a"})).await,
        asked(json!({"role": "system", "content": "a"})).await,
    );
    assert_eq!(developer, system);
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "strict": true, "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false}}}])
}

/// Returns chats in which every question is answered with the same tool call and, in every other chat, the tool's
/// result with a text.
fn calling_rows(count: usize) -> String {
    let row = |i: usize| {
        let call = json!({"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}});
        let mut messages = vec![
            json!({"role": "user", "content": format!("question {i}"), "name": null}),
            json!({"role": "assistant", "content": null, "tool_calls": [call], "weight": 1.0}),
        ];
        if i.is_multiple_of(2) {
            messages.push(json!({"role": "tool", "tool_call_id": "call_1", "content": "4"}));
            messages.push(json!({"role": "assistant", "content": [{"type": "text", "text": "Four."}]}));
        }
        json!({"messages": messages, "tools": tools(), "parallel_tool_calls": false}).to_string() + "\n"
    };
    (0..count).map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_learns_to_call_from_rows_that_call() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let file = platform.upload(&calling_rows(24)).unwrap();
    let (_, shown) =
        post(&platform, &format!("/v1/files/{file}/preview"), json!({"model": "tiny-tools", "rows": [1]})).await;
    let row = &shown["data"][0];
    let pieces =
        row["pieces"].as_array().unwrap_or_else(|| panic!("{shown}")).iter().zip(row["mask"].as_array().unwrap());
    let learnt: String =
        pieces.filter(|(_, trained)| **trained == 1).map(|(piece, _)| piece.as_str().unwrap()).collect();
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call><|im_end|>\n";
    assert_eq!(learnt, format!("{call}Four.<|im_end|>\n"));
    let (_, report) =
        platform.call(Method::GET, &format!("/v1/files/{file}/report?model=tiny-tools"), None).await.unwrap();
    assert_eq!((&report["unusable_rows"]["rows"], &report["odd_rows"]), (&json!(0), &json!({})), "{report}");

    let mut job = crate::house::job(&file);
    job["model"] = json!("tiny-tools");
    job["suffix"] = json!("Weather Calls!");
    job["method"]["supervised"]["hyperparameters"] = json!({"n_epochs": 10, "batch_size": 4});
    job["trainer"] = json!({"learning_rate": 0.01, "max_length": 2048});
    let (status, estimate) = post(&platform, "/v1/fine_tuning/estimates", job.clone()).await;
    assert_eq!(status, 200, "{estimate}");
    let id = create(&platform, job).await;
    let done = platform.ended(&id, Duration::from_secs(300)).await.unwrap();
    assert_eq!(
        (&done["status"], &done["user_provided_suffix"]),
        (&json!("succeeded"), &json!("weather-calls")),
        "{done}"
    );
    let (_, events) =
        platform.call(Method::GET, &format!("/v1/fine_tuning/jobs/{id}/events?limit=100"), None).await.unwrap();
    assert!(events.to_string().contains("'Weather Calls!' appears in the model's name as 'weather-calls'"), "{events}");

    let ask = json!({"model": done["fine_tuned_model"], "temperature": 0, "max_tokens": 200, "tools": tools(),
        "messages": [{"role": "user", "content": "question 5"}]});
    let (_, said) = post(&platform, "/v1/chat/completions", ask.clone()).await;
    let choice = &said["choices"][0];
    let made = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&choice["finish_reason"], &made["function"]["name"]),
        (&json!("tool_calls"), &json!("weather")),
        "{said}"
    );
    assert_eq!(made["function"]["arguments"], "{\"city\": \"Oslo\"}", "{said}");
    let mut again = ask;
    again["messages"] = json!([{"role": "user", "content": "question 5"}, choice["message"],
        {"role": "tool", "tool_call_id": made["id"], "content": "4"}]);
    let (_, said) = post(&platform, "/v1/chat/completions", again).await;
    assert_eq!(said["choices"][0]["message"]["content"], "Four.", "{said}");
}

/// A template that disables thinking if `enable_thinking` is false.
const THINKING: &str = "\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}";

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_the_template_are_the_jobs_and_the_previews() {
    let platform = Platform::start().unwrap();
    let folder = platform.folder().path("thinking");
    tiny::write(&folder, 7).unwrap();
    fs::write(folder.join("chat_template.jinja"), THINKING).unwrap();
    platform.json(&["models", "import", text(&folder).unwrap(), "--name", "thinking"]).unwrap();
    let row =
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think></think>b"}]});
    let file = platform.upload(&format!("{row}\n").repeat(4)).unwrap();
    let learnt = async |kwargs: Value| {
        let body = json!({"model": "thinking", "rows": [1], "chat_template_kwargs": kwargs});
        let (_, shown) = post(&platform, &format!("/v1/files/{file}/preview"), body).await;
        shown["data"][0]["trained_tokens"].as_u64().unwrap_or_else(|| panic!("{shown}"))
    };
    let quiet = json!({"enable_thinking": false});
    assert_eq!(learnt(Value::Null).await, learnt(quiet.clone()).await + "<think></think>".len() as u64);

    let mut job = crate::house::job(&file);
    job["model"] = json!("thinking");
    job["chat_template_kwargs"] = json!({"messages": []});
    let (status, refused) = post(&platform, "/v1/fine_tuning/jobs", job.clone()).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("chat_template_kwargs")), "{refused}");
    job["chat_template_kwargs"] = quiet.clone();
    job["method"]["supervised"]["hyperparameters"]["n_epochs"] = json!(1);
    let id = create(&platform, job).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    assert_eq!((&done["status"], &done["chat_template_kwargs"]), (&json!("succeeded"), &quiet), "{done}");
    assert_eq!(done["trained_tokens"].as_u64().unwrap(), 4 * learnt(quiet.clone()).await);
    let (_, adapters) = platform.call(Method::GET, "/v1/adapters", None).await.unwrap();
    let path = format!("/v1/adapters/{}/manifest", adapters["data"][0]["id"].as_str().unwrap());
    let (_, manifest) = platform.call(Method::GET, &path, None).await.unwrap();
    assert_eq!(manifest["origin"]["train"]["chat_template_kwargs"], quiet, "{manifest}");
}
