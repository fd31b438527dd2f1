//! LoRAX's `POST /generate_stream`: the request's body, and the events of its stream.
//!
//! Source: `GenerateParameters`, `StreamResponse` and `FinishReason` in LoRAX's `router/src/lib.rs`.

use attune_domain::serve::FinishReason;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::generate::{Generate, Step, message};

/// Returns the body of `POST /generate_stream`.
pub(crate) fn body(generate: &Generate<'_>) -> Value {
    let sampling = generate.sampling;
    let is_greedy = sampling.temperature <= 0.0 || sampling.top_p <= 0.0;
    let mut parameters = Map::new();
    let mut set = |name: &str, value: Value| parameters.insert(name.to_owned(), value);
    set("details", json!(true));
    set("max_new_tokens", json!(generate.max_tokens));
    set("do_sample", json!(!is_greedy));
    set("ignore_eos_token", json!(sampling.ignore_end_tokens));
    if !is_greedy {
        set("temperature", json!(sampling.temperature));
        set("seed", json!(generate.seed));
        // 1 is the whole distribution, which LoRAX accepts only as an omitted field.
        if sampling.top_p < 1.0 {
            set("top_p", json!(sampling.top_p));
        }
        if let Some(top_k) = sampling.top_k {
            set("top_k", json!(top_k));
        }
    }
    if (sampling.repetition_penalty - 1.0).abs() > 0.0 {
        set("repetition_penalty", json!(sampling.repetition_penalty));
    }
    if let Some((_, folder)) = generate.adapter {
        set("adapter_id", json!(folder));
        set("adapter_source", json!("local"));
    }
    json!({"inputs": generate.text, "parameters": parameters})
}

#[derive(Deserialize)]
struct Event {
    token: Token,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Token {
    id: u32,
}

#[derive(Deserialize)]
struct Details {
    finish_reason: String,
}

/// Returns the steps of an event.
///
/// # Errors
/// The event is an error, or is another one than documented.
pub(crate) fn steps(data: &str) -> Result<Vec<Step>, String> {
    let Ok(event) = serde_json::from_str::<Event>(data) else { return Err(message(data)) };
    let mut steps = vec![Step::Token { id: event.token.id, score: None }];
    match event.details.as_ref().map(|details| details.finish_reason.as_str()) {
        None => {}
        Some("length") => steps.push(Step::End(FinishReason::Length)),
        Some(_) => steps.push(Step::End(FinishReason::Stop)),
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::Sampling;

    use super::*;

    #[test]
    fn an_event_has_its_token_and_the_last_one_its_reason() {
        let event = |details: Value| {
            json!({"token": {"id": 5, "text": " a", "logprob": -0.5, "special": false}, "generated_text": null,
                "details": details})
            .to_string()
        };
        let token = Step::Token { id: 5, score: None };
        assert_eq!(steps(&event(Value::Null)), Ok(vec![token.clone()]));
        let last = |reason: &str| event(json!({"finish_reason": reason, "generated_tokens": 1, "seed": null}));
        assert_eq!(steps(&last("length")), Ok(vec![token.clone(), Step::End(FinishReason::Length)]));
        assert_eq!(steps(&last("eos_token")), Ok(vec![token, Step::End(FinishReason::Stop)]));
        let failed = r#"{"error": "Request failed during generation", "error_type": "generation"}"#;
        assert_eq!(steps(failed), Err("Request failed during generation".into()));
    }

    #[test]
    fn a_greedy_request_does_not_sample() {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let generate = Generate {
            adapter: Some(("a", "/cache/a")),
            prompt: &[1],
            text: "hi",
            sampling: &sampling,
            seed: 1,
            max_tokens: 3,
            stop_ids: &[],
            project: "p",
            is_batch: false,
        };
        let parameters = json!({"details": true, "max_new_tokens": 3, "do_sample": false, "ignore_eos_token": false,
            "adapter_id": "/cache/a", "adapter_source": "local"});
        assert_eq!(body(&generate), json!({"inputs": "hi", "parameters": parameters}));
    }
}
