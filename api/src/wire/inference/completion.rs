//! Text completion requests: OpenAI's legacy request body, as far as it is supported.

use std::collections::BTreeMap;

use attune_domain::serve::{Prompt, Sampling};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    ignored::remove_ignored,
    sampling::{Shared, Stop, StreamOptions, check_max_tokens, check_model, check_sequences, range},
};
use crate::{error::ApiError, http::json_body};

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
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are considered. Defaults
    /// to 1.
    pub top_p: Option<f64>,
    /// The number of choices to return for each prompt, from 1 to 128. Defaults to 1.
    pub n: Option<u32>,
    /// The number of choices to generate for each prompt, from `n` to 20. The `n` choices with the highest log
    /// probability per token are returned. Not allowed with `stream` if it is above `n`.
    pub best_of: Option<u32>,
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

/// The prompts of a request, as strings or token IDs.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = PromptsSchema)]
pub struct Prompts(pub Vec<OnePrompt>);

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

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnePrompt {
    /// A string.
    Text(String),
    /// Token IDs.
    Ids(Vec<u32>),
}

impl From<OnePrompt> for Prompt {
    fn from(prompt: OnePrompt) -> Self {
        match prompt {
            OnePrompt::Text(text) => Self::Text { text },
            OnePrompt::Ids(ids) => Self::Tokens { ids },
        }
    }
}

const EXPECTED: &str = "a text, a list of token ids, or a list of either";

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || serde::de::Error::custom(format!("invalid type: expected {EXPECTED}"));
        let value = Value::deserialize(deserializer)?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = |list: &[Value]| list.iter().map(id).collect::<Option<Vec<u32>>>();
        let one = |value: &Value| match value {
            Value::String(text) => Some(OnePrompt::Text(text.clone())),
            Value::Array(list) if !list.is_empty() => ids(list).map(OnePrompt::Ids),
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
    /// Parses a request body. Removes ignored fields first.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        remove_ignored(&mut fields)?;
        if fields.remove("suffix").is_some_and(|suffix| !suffix.is_null()) {
            let message = "Unsupported 'suffix': text is only generated at the end of the prompt.";
            return Err(ApiError::unsupported("suffix", message));
        }
        let new: Self = json_body::from_value(Value::Object(fields))?;
        new.check()?;
        Ok(new)
    }

    fn check(&self) -> Result<(), ApiError> {
        self.shared().check()?;
        let prompts = self.prompt.0.len();
        if prompts == 0 || prompts > MOST_PROMPTS {
            let message = format!("Invalid 'prompt': {prompts} prompts; from 1 to {MOST_PROMPTS} are taken.");
            return Err(ApiError::invalid("prompt", message));
        }
        check_sequences("prompt", prompts, self.drawn())?;
        check_model(&self.model)?;
        check_max_tokens("max_tokens", self.max_tokens, 0)?;
        range("logprobs", self.logprobs.map(f64::from), 0.0, f64::from(MOST_LOGPROBS))?;
        range("best_of", self.best_of.map(f64::from), f64::from(self.choices()), f64::from(MOST_BEST_OF))?;
        if self.streams() && self.drawn() > self.choices() {
            let message = "Invalid 'best_of': a value above 'n' cannot be streamed. Omit 'stream'.";
            return Err(ApiError::invalid("best_of", message));
        }
        Ok(())
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

    /// Returns the number of choices to return for each prompt.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Returns the number of choices to generate for each prompt.
    pub fn drawn(&self) -> u32 {
        self.best_of.unwrap_or_else(|| self.choices())
    }

    /// Returns whether the response contains the prompt.
    pub fn echoes(&self) -> bool {
        self.echo == Some(true)
    }

    /// Returns whether the answer is streamed.
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Returns whether the stream ends with a usage chunk.
    pub fn streams_usage(&self) -> bool {
        self.shared().streams_usage()
    }

    /// Returns the sampling parameters. The argument is the seed if the request sets none.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a key of `logit_bias` is not a token ID.
    pub fn sampling(&self, default_seed: u64) -> Result<Sampling, ApiError> {
        // `best_of` ranks choices by the log probabilities of their tokens.
        let ranked = (self.drawn() > self.choices()).then_some(0);
        Ok(Sampling {
            max_tokens: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            logprobs: self.logprobs.or(ranked),
            ..self.shared().sampling(default_seed)?
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: &Value) -> Result<NewCompletion, ApiError> {
        let mut body = json!({"model": "m", "prompt": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewCompletion::read(body.as_object().unwrap().clone())
    }

    #[test]
    fn prompts_are_texts_or_ids_one_or_many() {
        let (text, ids) = (|text: &str| OnePrompt::Text(text.into()), |ids: &[u32]| OnePrompt::Ids(ids.into()));
        for (given, want) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![ids(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
        ] {
            assert_eq!(read(&json!({"prompt": given})).unwrap().prompt.0, want);
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

    #[test]
    fn the_defaults_are_openais() {
        let new = read(&json!({"user": "ann"})).unwrap();
        let sampling = new.sampling(3).unwrap();
        assert_eq!((sampling.max_tokens, sampling.logprobs, new.drawn()), (Some(16), None, 1));
        assert_eq!(read(&json!({"best_of": 2})).unwrap().sampling(3).unwrap().logprobs, Some(0));
        assert_eq!(read(&json!({"max_tokens": 0})).unwrap().sampling(3).unwrap().max_tokens, Some(0));
    }
}
