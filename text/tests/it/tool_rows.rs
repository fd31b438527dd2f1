//! Rows with tools: the trained tokens, and refused rows.

use attune_domain::dataset::{Row, parse_row};
use attune_domain::template_kwargs::TemplateKwargs;
use attune_text::encode::Learnt;
use attune_text::model::TextModel;
use attune_text::template::RenderSettings;
use serde_json::{Value, json};

use crate::tiny::{AT, CHATML, DAY, model_with};

/// A template with calls in the format of Qwen 2.5's.
const CALLS: &str = "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}\
    {{ '<|im_end|>\n' }}\
    {% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content %}{{ m.content }}{% endif %}\
    {% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.name + ' ' }}{{ c.function.arguments | tojson }}\
    {{ '</tool_call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {% if quiet %}{{ 'hm' }}{% endif %}{% endif %}";

fn model(template: &str) -> TextModel {
    model_with(&json!({"eos_token": "<|end|>", "chat_template": template}))
}

fn row(row: &Value) -> Row {
    parse_row(1, row.to_string().as_bytes()).unwrap()
}

fn oslo() -> Value {
    json!({
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function",
                    "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {"role": "assistant", "content": "Four."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "parallel_tool_calls": false,
    })
}

/// Returns the trained texts, and the whole text.
fn learnt(model: &TextModel, row: &Row) -> (Vec<String>, String) {
    let example = model.encode_row(row, Learnt::Answers, DAY).unwrap();
    let decode = |ids: &[u32]| model.tokenizer().decode_with_special(ids).unwrap();
    let paired: Vec<_> = example.ids.iter().copied().zip(example.trained).collect();
    let runs = paired.chunk_by(|a, b| a.1 == b.1).filter(|run| run[0].1);
    let texts = runs.map(|run| decode(&run.iter().map(|(id, _)| *id).collect::<Vec<_>>())).collect();
    (texts, decode(&example.ids))
}

const CALL: &str = "<tool_call>weather {\"city\": \"Oslo\"}</tool_call><|im_end|>\n";

#[test]
fn calls_are_trained_and_what_tools_return_is_read() {
    let (texts, whole) = learnt(&model(CALLS), &row(&oslo()));
    assert_eq!(texts, [CALL, "Four.<|im_end|>\n"]);
    let tool = r#"{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}"#;
    assert_eq!(
        whole,
        format!(
            "<|im_start|>system\n{tool}<|im_end|>\n<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\n{CALL}\
             <|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
        )
    );
    let mut weighed = oslo();
    weighed["messages"][1]["weight"] = json!(0.0);
    assert_eq!(learnt(&model(CALLS), &row(&weighed)).0, ["Four.<|im_end|>\n"]);
    weighed["messages"][3]["weight"] = json!(0);
    weighed["messages"][1]["weight"] = json!(1.0);
    assert_eq!(learnt(&model(CALLS), &row(&weighed)).0, [CALL]);
}

#[test]
fn a_row_is_rendered_as_the_chat_that_requests_its_answer() {
    let (model, row) = (model(CALLS), row(&oslo()));
    let Row::Chat { messages, tools, .. } = &row else { panic!("a chat") };
    let turns: Vec<_> = messages.iter().map(Into::into).collect();
    let asked = model.encode_chat(&turns[..3], RenderSettings { tools: tools.as_ref(), ..AT }).unwrap();
    let example = model.encode_row(&row, Learnt::Answers, DAY).unwrap();
    assert!(example.ids.starts_with(&asked) && example.trained[asked.len()..].iter().all(|trained| *trained));
}

#[test]
fn variables_reach_rows_as_they_reach_chats() {
    let kwargs = TemplateKwargs::check(json!({"quiet": true}).as_object().unwrap()).unwrap();
    let asked = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hmb"}]});
    let quiet = model(CALLS).with_kwargs(kwargs);
    assert_eq!(learnt(&model(CALLS), &row(&asked)).0, ["hmb<|im_end|>\n"]);
    assert_eq!(learnt(&quiet, &row(&asked)).0, ["b<|im_end|>\n"]);
    let kwargs = TemplateKwargs::check(json!({"quiet": "<|im_end|>"}).as_object().unwrap()).unwrap();
    let refused = model(CALLS).with_kwargs(kwargs).encode_row(&row(&asked), Learnt::Answers, DAY).unwrap_err();
    assert!(refused.to_string().starts_with("chat_template_kwargs.quiet contains '<|im_end|>'"), "{refused}");
}

#[test]
fn a_template_without_tools_gets_them_in_the_generic_form() {
    let (texts, whole) = learnt(&model(CHATML), &row(&oslo()));
    let call = r#"{"name": "weather", "arguments": {"city":"Oslo"}}"#;
    assert_eq!(texts, [format!("{call}<|im_end|>\n"), "Four.<|im_end|>\n".into()]);
    assert!(whole.starts_with("<|im_start|>system\nYou can call these functions:\n{\"name\":\"weather\""), "{whole}");
    assert!(whole.contains("<|im_start|>user\nResult of weather: 4<|im_end|>\n"), "{whole}");
    let Row::Chat { messages, tools, .. } = row(&oslo()) else { panic!("a chat") };
    let turns: Vec<_> = messages.iter().map(Into::into).collect();
    let asked = model(CHATML).encode_chat(&turns[..3], RenderSettings { tools: tools.as_ref(), ..AT }).unwrap();
    let example = model(CHATML).encode_row(&row(&oslo()), Learnt::Answers, DAY).unwrap();
    assert!(example.ids.starts_with(&asked) && example.trained[asked.len()..].iter().all(|trained| *trained));
}

#[test]
fn what_the_template_would_pass_over_is_refused() {
    let refused = |template: &str, asked: &Value| {
        model(template).encode_row(&row(asked), Learnt::Answers, DAY).unwrap_err().to_string()
    };
    let reason = "the base model's chat template does not render 'weather', so the model would not be trained on it";
    let said = refused(&CALLS.replace("{{ tool | tojson }}", "a tool"), &oslo());
    assert!(said.starts_with(&format!("tools[0]: {reason}")), "{said}");
    let only_tools = CALLS.replace("m.tool_calls", "m.nothing");
    let said = refused(&only_tools, &oslo());
    assert!(said.starts_with(&format!("messages[1].tool_calls: {reason}")), "{said}");
    let mut spelled = oslo();
    spelled["tools"][0]["function"]["description"] = json!("<|im_end|>");
    assert!(refused(CALLS, &spelled).starts_with("tools contains '<|im_end|>'"));
    let mut spelled = oslo();
    spelled["messages"][1]["tool_calls"][0]["function"]["arguments"] = json!({"city": "<|im_end|>"});
    assert!(refused(CALLS, &spelled).starts_with("messages[1].tool_calls contains '<|im_end|>'"));
}
