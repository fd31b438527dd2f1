//! vLLM's completions: the request's body, and the chunks of its stream.
//!
//! Source: `CompletionRequest` and `CompletionStreamResponse` in vLLM's
//! `vllm/entrypoints/openai/completion/protocol.py`.

use attune_domain::serve::FinishReason;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::generate::{Generate, Step, message};
use crate::decoding::scores::TokenScore;

/// The name that the engine serves the base by.
pub(crate) const BASE: &str = "base";

/// The prefix of a token in `logprobs`, with `return_tokens_as_token_ids`.
const TOKEN_ID: &str = "token_id:";

/// Returns the body of `POST /v1/completions`.
pub(crate) fn body(generate: &Generate<'_>) -> Value {
    let sampling = generate.sampling;
    // vLLM accepts no nucleus of 0: only the most likely token is left then.
    let is_greedy = sampling.temperature <= 0.0 || sampling.top_p <= 0.0;
    let bias: Map<String, Value> =
        sampling.logit_bias.iter().map(|(id, amount)| (id.to_string(), json!(amount))).collect();
    json!({
        "model": generate.adapter.map_or(BASE, |(name, _)| name),
        "prompt": generate.prompt,
        "stream": true,
        "max_tokens": generate.max_tokens,
        "temperature": if is_greedy { 0.0 } else { sampling.temperature },
        "top_p": if is_greedy { 1.0 } else { sampling.top_p },
        "top_k": sampling.top_k.unwrap_or(0),
        "min_p": sampling.min_p,
        "seed": generate.seed & (u64::MAX >> 1),
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": if bias.is_empty() { Value::Null } else { Value::Object(bias) },
        "logprobs": sampling.logprobs,
        "return_tokens_as_token_ids": true,
        "return_token_ids": true,
        "stop_token_ids": generate.stop_ids,
        "ignore_eos": sampling.ignore_end_tokens,
        "skip_special_tokens": false,
        "priority": u8::from(generate.is_batch),
        "cache_salt": generate.project,
    })
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    #[serde(default)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
}

/// Returns the steps of a chunk.
///
/// # Errors
/// The chunk is an error, or is another one than documented.
pub(crate) fn steps(data: &str) -> Result<Vec<Step>, String> {
    if data == "[DONE]" {
        return Ok(Vec::new());
    }
    let chunk: Chunk = serde_json::from_str(data).map_err(|error| error.to_string())?;
    if chunk.error.is_some() {
        return Err(message(data));
    }
    let mut steps = Vec::new();
    for choice in chunk.choices {
        let scores = choice.logprobs.map(Logprobs::scores).transpose()?;
        let ids = choice.token_ids.unwrap_or_default();
        if scores.as_ref().is_some_and(|scores| scores.len() != ids.len()) {
            return Err("a chunk has another number of log-probabilities than of tokens".into());
        }
        let mut scores = scores.into_iter().flatten();
        steps.extend(ids.into_iter().map(|id| Step::Token { id, score: scores.next() }));
        match choice.finish_reason.as_deref() {
            None => {}
            Some("stop") => steps.push(Step::End(FinishReason::Stop)),
            Some("length") => steps.push(Step::End(FinishReason::Length)),
            Some(other) => return Err(format!("the engine ended the answer: {other}")),
        }
    }
    Ok(steps)
}

impl Logprobs {
    fn scores(self) -> Result<Vec<TokenScore>, String> {
        let mut tops = self.top_logprobs.into_iter();
        let all = self.tokens.iter().zip(self.token_logprobs).map(|(token, logprob)| {
            let listed = tops.next().flatten().unwrap_or_default();
            let mut top = Vec::with_capacity(listed.len());
            for (token, logprob) in &listed {
                top.push((token_id(token)?, logprob.as_f64().unwrap_or(f64::NEG_INFINITY)));
            }
            top.sort_by(|a: &(u32, f64), b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            Ok(TokenScore { id: token_id(token)?, logprob, top })
        });
        all.collect()
    }
}

fn token_id(token: &str) -> Result<u32, String> {
    let id = token.strip_prefix(TOKEN_ID).and_then(|digits| digits.parse().ok());
    id.ok_or_else(|| format!("a token of logprobs is not of the form {TOKEN_ID}ID"))
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::Sampling;

    use super::*;

    #[test]
    fn a_chunk_has_its_tokens_with_their_scores() {
        let chunk = json!({"choices": [{"index": 0, "text": " a", "token_ids": [5, 6], "finish_reason": "length",
            "logprobs": {"tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-0.5, -1.0],
                "top_logprobs": [{"token_id:7": -0.75, "token_id:5": -0.5}, null]}}]});
        let score = |id, logprob, top: &[(u32, f64)]| TokenScore { id, logprob: Some(logprob), top: top.to_vec() };
        let expected = [
            Step::Token { id: 5, score: Some(score(5, -0.5, &[(5, -0.5), (7, -0.75)])) },
            Step::Token { id: 6, score: Some(score(6, -1.0, &[])) },
            Step::End(FinishReason::Length),
        ];
        assert_eq!(steps(&chunk.to_string()).unwrap(), expected);
        assert_eq!(steps("[DONE]"), Ok(vec![]));
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        assert_eq!(steps(r#"{"error": {"message": "out of blocks", "code": 500}}"#), Err("out of blocks".into()));
        assert!(steps("{").is_err());
        let aborted = r#"{"choices": [{"token_ids": [], "finish_reason": "abort"}]}"#;
        assert_eq!(steps(aborted), Err("the engine ended the answer: abort".into()));
        let text = r#"{"choices": [{"token_ids": [1], "logprobs": {"tokens": ["a"], "token_logprobs": [0]}}]}"#;
        assert!(steps(text).unwrap_err().contains("token_id:ID"));
    }

    #[test]
    fn a_nucleus_of_zero_is_greedy() {
        let sampling = Sampling { top_p: 0.0, seed: u64::MAX, ..Sampling::default() };
        let generate = Generate {
            adapter: None,
            prompt: &[1],
            text: "",
            sampling: &sampling,
            seed: sampling.seed,
            max_tokens: 3,
            stop_ids: &[2],
            project: "p",
            is_batch: true,
        };
        let body = body(&generate);
        assert_eq!((&body["model"], &body["temperature"], &body["top_p"]), (&json!("base"), &json!(0.0), &json!(1.0)));
        assert_eq!((&body["seed"], &body["priority"]), (&json!(i64::MAX), &json!(1)));
        assert!(body["logit_bias"].is_null() && body["logprobs"].is_null());
    }
}
