//! Text completion requests: OpenAI's legacy request body, as far as it is supported.

use std::collections::BTreeMap;

use attune_domain::serve::{Form, Prompt, Sampling};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    ignored::{remove_ignored, split_key},
    param_names::ParamNames,
    sampling::{Stop, StreamOptions, check_generated, check_max_tokens, check_model, check_sequences, range, shared},
    structure::{self, StructuredOutputs},
};
use crate::{error::InferenceError, json};

/// The default of `max_tokens`. Source: OpenAI's API reference.
const DEFAULT_MAX_TOKENS: u64 = 16;
/// The largest `logprobs`. Source: OpenAI's API reference.
const MOST_LOGPROBS: u32 = 5;
/// The largest `best_of`. Source: OpenAI's API reference.
const MOST_BEST_OF: u32 = 20;
/// The maximum number of prompts in one request.
const MOST_PROMPTS: usize = 128;

/// The request body for a text completion.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCompletion {
    /// The name of a base model or of a fine-tuned model.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// The prompt: a string, a list of token IDs, or up to 128 of either. At most 128 choices are generated over all of
    /// them.
    pub prompt: Prompts,
    /// The maximum number of tokens in the answer. Defaults to 16.
    pub max_tokens: Option<u64>,
    /// The sampling temperature, from 0 (always the most likely token) to 2. Defaults to 1.
    pub temperature: Option<f64>,
    /// Only this many of the most likely tokens are considered, up to 1048576. 0 and -1, the default, mean all. Applied
    /// before `top_p`.
    pub top_k: Option<i32>,
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are considered. Defaults
    /// to 1.
    pub top_p: Option<f64>,
    /// Only tokens with at least this fraction of the most likely token's probability are considered, from 0, the
    /// default, to 1. Applied after `top_p`.
    pub min_p: Option<f64>,
    /// A number from 0.01 to 100 that makes tokens of the prompt and of the answer less likely: their positive logits
    /// are divided by it, negative ones multiplied. Defaults to 1.
    pub repetition_penalty: Option<f64>,
    /// The number of choices to return for each prompt, from 1 to 128. Defaults to 1.
    pub n: Option<u32>,
    /// The number of choices to generate for each prompt, from `n` to 20. The `n` choices with the highest log
    /// probability per token are returned. Not allowed with `stream` if it is above `n`.
    pub best_of: Option<u32>,
    /// The format of the answer's text in the form of vLLM's clients, enforced while tokens are sampled.
    pub structured_outputs: Option<StructuredOutputs>,
    /// If `true`, returns the prompt in front of the completion.
    pub echo: Option<bool>,
    /// From 0 to 5: returns the log probability of each token, and of this many of the most likely tokens at each
    /// position.
    pub logprobs: Option<u32>,
    /// A number from -2 to 2, subtracted once from the logit of each token that the answer already contains.
    pub presence_penalty: Option<f64>,
    /// A number from -2 to 2, subtracted from a token's logit once for each time that the answer already contains the
    /// token.
    pub frequency_penalty: Option<f64>,
    /// A map from token IDs to biases from -100 to 100, which are added to the tokens' logits.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// The random seed: the same seed and request sample the same tokens. Defaults to a new seed for each request.
    pub seed: Option<i64>,
    /// Up to 4 sequences at which generation stops. The answer does not contain the stop sequence.
    #[serde(default)]
    pub stop: Stop,
    /// If `true`, streams the answer in chunks, as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream. Requires `stream`.
    pub stream_options: Option<StreamOptions>,
}

/// A checked request for a text completion.
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    /// The name of the model.
    pub model: String,
    /// The prompts, strings or token IDs.
    pub prompts: Vec<Prompt>,
    /// The maximum number of tokens of a prompt that is a string: the last ones are used.
    pub truncate: Option<u64>,
    /// The required format of the answers' text.
    pub form: Form,
    /// The names of parameters in errors of the replica.
    pub(crate) names: ParamNames,
    /// `true` if the response contains the prompt.
    pub echo: bool,
    /// The number of choices to return for each prompt.
    pub choices: u32,
    /// The number of choices to generate for each prompt.
    pub generated: u32,
    /// The sampling parameters.
    pub sampling: Sampling,
    /// `true` if log probabilities were requested.
    pub with_logprobs: bool,
    /// `true` if the answer is streamed.
    pub streams: bool,
    /// `true` if the stream ends with a usage chunk.
    pub with_usage: bool,
    /// The key by which the requests to an alias are split between its versions, if the caller sets one.
    pub split_key: Option<String>,
}

/// The prompts of a request, as strings or token IDs.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[schema(value_type = PromptsSchema)]
pub struct Prompts(pub Vec<Prompt>);

/// The accepted forms of `prompt`.
#[derive(ToSchema)]
#[schema(title = "Prompts")]
#[serde(untagged)]
pub enum PromptsSchema {
    /// One string.
    Text(String),
    /// Several strings.
    Texts(Vec<String>),
    /// The token IDs of one prompt.
    Ids(Vec<u32>),
    /// The token IDs of several prompts.
    ManyIds(Vec<Vec<u32>>),
}

const EXPECTED: &str = "a text, a list of token ids, or a list of either";

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || serde::de::Error::custom(format!("invalid type: expected {EXPECTED}"));
        let value = Value::deserialize(deserializer)?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = |list: &[Value]| list.iter().map(id).collect::<Option<Vec<u32>>>();
        let one = |value: &Value| match value {
            Value::String(text) => Some(Prompt::Text { text: text.clone() }),
            Value::Array(list) if !list.is_empty() => ids(list).map(|ids| Prompt::Tokens { ids }),
            _ => None,
        };
        let prompts = match &value {
            Value::Array(list) if list.first().is_some_and(Value::is_number) => one(&value).map(|prompt| vec![prompt]),
            Value::Array(list) => list.iter().map(one).collect(),
            _ => one(&value).map(|prompt| vec![prompt]),
        };
        prompts.map(Self).ok_or_else(refused)
    }
}

impl NewCompletion {
    /// Parses and checks a request body. Removes ignored fields first.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(fields: Map<String, Value>) -> Result<CompletionRequest, InferenceError> {
        Self::read_with(fields, rand::random())
    }

    /// Parses and checks a request body; `default_seed` is its seed if it sets none.
    fn read_with(mut fields: Map<String, Value>, default_seed: u64) -> Result<CompletionRequest, InferenceError> {
        let split_key = split_key(&fields);
        remove_ignored(&mut fields)?;
        if fields.remove("suffix").is_some_and(|suffix| !suffix.is_null()) {
            let message = "Unsupported 'suffix': text is only generated at the end of the prompt.";
            return Err(InferenceError::unsupported("suffix", message));
        }
        let new: Self = json::from_value(Value::Object(fields))?;
        Ok(CompletionRequest { split_key, ..new.checked(default_seed)? })
    }

    fn checked(self, default_seed: u64) -> Result<CompletionRequest, InferenceError> {
        let shared = shared!(self);
        let sampling = shared.sampling(default_seed)?;
        let (choices, streams) = (shared.choices(), shared.streams());
        let generated = self.best_of.unwrap_or(choices);
        let prompts = self.prompt.0.len();
        if prompts == 0 || prompts > MOST_PROMPTS {
            let message = format!("Invalid 'prompt': {prompts} prompts; from 1 to {MOST_PROMPTS} are taken.");
            return Err(InferenceError::invalid("prompt", message));
        }
        check_sequences("prompt", prompts, generated)?;
        check_model(&self.model)?;
        check_max_tokens("max_tokens", self.max_tokens, 0)?;
        range("logprobs", self.logprobs.map(f64::from), 0.0, f64::from(MOST_LOGPROBS))?;
        range("best_of", self.best_of.map(f64::from), f64::from(choices), f64::from(MOST_BEST_OF))?;
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let answers = u32::try_from(prompts).unwrap_or(u32::MAX).saturating_mul(generated);
        check_generated("max_tokens", answers, Some(max_tokens))?;
        let form = self.structured_outputs.as_ref().map_or(Ok(Form::Free), StructuredOutputs::form)?;
        let names = self.structured_outputs.as_ref().map(|_| structure::names()).unwrap_or_default();
        let is_ranked = generated > choices;
        if streams && is_ranked {
            let message = "Invalid 'best_of': a value above 'n' cannot be streamed. Omit 'stream'.";
            return Err(InferenceError::invalid("best_of", message));
        }
        Ok(CompletionRequest {
            truncate: None,
            form,
            names,
            echo: self.echo == Some(true),
            choices,
            generated,
            sampling: Sampling {
                max_tokens: Some(max_tokens),
                // `best_of` ranks choices by the log probabilities of their tokens.
                logprobs: self.logprobs.or(is_ranked.then_some(0)),
                ..sampling
            },
            with_logprobs: self.logprobs.is_some(),
            streams,
            with_usage: shared.streams_usage(),
            prompts: self.prompt.0,
            split_key: None,
            model: self.model,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: &Value) -> Result<CompletionRequest, InferenceError> {
        let mut body = json!({"model": "m", "prompt": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewCompletion::read_with(body.as_object().unwrap().clone(), 3)
    }

    #[test]
    fn prompts_are_texts_or_ids_one_or_many() {
        let text = |text: &str| Prompt::Text { text: text.into() };
        let ids = |ids: &[u32]| Prompt::Tokens { ids: ids.into() };
        for (given, want) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![ids(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
        ] {
            assert_eq!(read(&json!({"prompt": given})).unwrap().prompts, want);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (more, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": ["a", 1]}), "prompt"),
            (json!({"suffix": "end"}), "suffix"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"n": 3, "best_of": 2}), "best_of"),
            (json!({"best_of": 21}), "best_of"),
            (json!({"best_of": 2, "stream": true}), "best_of"),
            (json!({"messages": []}), "messages"),
        ] {
            let error = read(&more).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{more}: {}", error.message);
        }
    }

    /// A value one step past each bound is refused with the field's name; the bound itself is accepted.
    #[test]
    fn limit_of_every_field_of_a_completion() {
        let prompts = |count: usize| json!({"prompt": vec!["a"; count]});
        let several = |count: usize, n: u32| json!({"prompt": vec!["a"; count], "n": n});
        for (most, beyond, param) in [
            (prompts(128), prompts(129), "prompt"),
            (several(4, 32), several(4, 33), "prompt"),
            (several(1, 128), several(2, 128), "prompt"),
            (json!({"prompt": vec!["a"; 6], "best_of": 20}), json!({"prompt": vec!["a"; 7], "best_of": 20}), "prompt"),
            (json!({"logprobs": 5}), json!({"logprobs": 6}), "logprobs"),
            (json!({"best_of": 20}), json!({"best_of": 21}), "best_of"),
            (json!({"n": 128}), json!({"n": 129}), "n"),
            (json!({"max_tokens": 1_u64 << 31}), json!({"max_tokens": (1_u64 << 31) + 1}), "max_tokens"),
            (json!({"top_k": 1 << 20}), json!({"top_k": (1 << 20) + 1}), "top_k"),
            (json!({"min_p": 1}), json!({"min_p": 1.01}), "min_p"),
            (json!({"repetition_penalty": 0.01}), json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"stop": vec!["x"; 4]}), json!({"stop": vec!["x"; 5]}), "stop"),
            (json!({"model": "x".repeat(512)}), json!({"model": "x".repeat(513)}), "model"),
            (json!({"user": "x".repeat(512)}), json!({"user": "x".repeat(513)}), "user"),
        ] {
            let refused = read(&beyond).unwrap_err().body().error;
            assert_eq!(refused.param.as_deref(), Some(param), "{}", refused.message);
            assert!(read(&most).is_ok(), "{param}");
        }
    }

    /// 64 prompts with 128 choices each are 8,192 sequences, which would delay all other requests.
    #[test]
    fn attack_a07_a_request_for_thousands_of_answers_is_refused() {
        let refused = read(&json!({"prompt": vec!["a"; 64], "n": 128})).unwrap_err().body().error;
        assert!(refused.message.contains("8192 answers; at most 128"), "{}", refused.message);
    }

    /// 8 prompts with 16 answers each are 128 answers; at most 8192 tokens each are a million in total.
    #[test]
    fn limit_of_the_tokens_of_several_answers() {
        let request = |prompts: usize, n: u32, most: u64| {
            read(&json!({"prompt": vec!["a"; prompts], "n": n, "max_tokens": most}))
        };
        assert!(request(8, 16, 8192).is_ok() && request(1, 1, 1 << 31).is_ok());
        let error = request(8, 16, 8193).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("max_tokens"));
        assert!(error.message.contains("128 answers of up to 8193 tokens each; at most 1048576"), "{}", error.message);
    }

    #[test]
    fn an_answer_s_format_is_that_of_structured_outputs() {
        assert_eq!(read(&json!({})).unwrap().form, Form::Free);
        let form = read(&json!({"structured_outputs": {"regex": "a+"}})).unwrap().form;
        assert_eq!(form, Form::Regex { pattern: "a+".into() });
    }

    #[test]
    fn the_defaults_are_openais() {
        let new = read(&json!({"user": "ann"})).unwrap();
        assert_eq!((new.sampling.max_tokens, new.sampling.logprobs, new.generated), (Some(16), None, 1));
        let ranked = read(&json!({"best_of": 2})).unwrap();
        assert_eq!((ranked.sampling.logprobs, ranked.with_logprobs), (Some(0), false));
        assert_eq!(read(&json!({"max_tokens": 0})).unwrap().sampling.max_tokens, Some(0));
    }
}
