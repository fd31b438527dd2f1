//! Responses in LoRAX's format: a whole object, or a chunk for each token, and errors.

use attune_domain::serve::TokenLogprob;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error_body::ErrorBody;

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LoraxResponse {
    /// The generated text.
    pub generated_text: String,
    /// The details, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<LoraxDetails>,
}

/// The details of a generated text.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LoraxDetails {
    /// The end of the answer.
    #[serde(flatten)]
    pub end: LoraxEnd,
    /// The prompt's tokens, if requested.
    pub prefill: Vec<LoraxPrefillToken>,
    /// The generated tokens, with the end token or those of the stop sequence.
    pub tokens: Vec<LoraxToken>,
}

/// The end of an answer: the details of a stream's last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct LoraxEnd {
    /// The reason why generation stopped.
    pub finish_reason: LoraxFinish,
    /// The number of the prompt's tokens.
    pub prompt_tokens: u64,
    /// The number of generated tokens, the end token included.
    pub generated_tokens: u64,
    /// The seed, if tokens were sampled.
    pub seed: Option<u64>,
}

/// The reason why generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraxFinish {
    /// `max_new_tokens` was reached, or the context was full.
    Length,
    /// The model ended its turn, or the JSON of the required format is complete.
    EosToken,
    /// A stop sequence was generated.
    StopSequence,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LoraxToken {
    /// The token's ID.
    pub id: u32,
    /// The token's text; empty if it ends within a character, which belongs to the token that completes it.
    pub text: String,
    /// The natural logarithm of the token's probability in the model's own distribution.
    pub logprob: f64,
    /// `true` for a special token, whose text is not part of the generated text.
    pub special: bool,
}

/// A token of the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LoraxPrefillToken {
    /// The token's ID.
    pub id: u32,
    /// The token's text.
    pub text: String,
    /// The natural logarithm of the token's probability; `null` for the first token, which has no context.
    pub logprob: Option<f64>,
}

impl From<TokenLogprob> for LoraxPrefillToken {
    fn from(token: TokenLogprob) -> Self {
        let text = String::from_utf8_lossy(&token.bytes).into_owned();
        Self { id: token.id, text, logprob: token.logprob }
    }
}

/// A chunk of a stream: the data of one server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LoraxChunk {
    /// The token.
    pub token: LoraxToken,
    /// The whole generated text, in the last chunk.
    pub generated_text: Option<String>,
    /// The end of the answer, in the last chunk, if details were requested.
    pub details: Option<LoraxEnd>,
}

/// An error in LoRAX's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LoraxError {
    /// The human-readable message.
    pub error: String,
    /// The error type: `validation`, `overloaded` or `generation`. Omitted if the status has no type in LoRAX.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_type: Option<&'static str>,
}

/// The accepted forms of an error's body.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum LoraxRefusal {
    /// An error in LoRAX's format.
    Lorax(LoraxError),
    /// An error before the request is read: a missing key or permission, a rate limit, a header.
    Api(ErrorBody),
}

impl LoraxError {
    /// Creates the error of a response with this status; an invalid request has 422 in LoRAX.
    #[must_use]
    pub fn new(message: String, status: StatusCode) -> Self {
        let error_type = match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Some("validation"),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Some("overloaded"),
            status if status.is_server_error() => Some("generation"),
            _ => None,
        };
        Self { error: message, error_type }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn responses_and_errors_have_lorax_s_shape() {
        let end = LoraxEnd { finish_reason: LoraxFinish::EosToken, prompt_tokens: 2, generated_tokens: 1, seed: None };
        let token = LoraxToken { id: 3, text: "a".into(), logprob: -0.5, special: false };
        let prefill = LoraxPrefillToken { id: 1, text: "b".into(), logprob: None };
        let details = LoraxDetails { end, prefill: vec![prefill], tokens: vec![token.clone()] };
        let response = LoraxResponse { generated_text: "a".into(), details: Some(details) };
        assert_eq!(
            serde_json::to_value(response).unwrap(),
            json!({"generated_text": "a", "details": {
                "finish_reason": "eos_token", "prompt_tokens": 2, "generated_tokens": 1, "seed": null,
                "prefill": [{"id": 1, "text": "b", "logprob": null}],
                "tokens": [{"id": 3, "text": "a", "logprob": -0.5, "special": false}],
            }})
        );
        let chunk = LoraxChunk { token, generated_text: None, details: None };
        assert_eq!(
            serde_json::to_value(chunk).unwrap(),
            json!({"token": {"id": 3, "text": "a", "logprob": -0.5, "special": false}, "generated_text": null,
                   "details": null})
        );
        for (status, want) in
            [(400, Some("validation")), (429, Some("overloaded")), (502, Some("generation")), (404, None)]
        {
            let error = LoraxError::new("no".into(), StatusCode::from_u16(status).unwrap());
            assert_eq!(error.error_type, want, "{status}");
        }
    }
}
