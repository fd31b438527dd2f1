//! Requests for completions of plain text: OpenAI's older body, as far as it can be done.

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

/// The longest answer if nothing is said. Source: OpenAI's API reference.
const DEFAULT_MAX_TOKENS: u64 = 16;
/// The most rivals that are told of a token. Source: OpenAI's API reference.
const MOST_LOGPROBS: u32 = 5;
/// The most answers from which the best are taken. Source: OpenAI's API reference.
const MOST_BEST_OF: u32 = 20;
/// The most prompts in one request.
const MOST_PROMPTS: usize = 128;

/// A text to be gone on with.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCompletion {
    /// A base model's name, or a tuned one's.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub model: String,
    /// A text, a list of token ids, or up to 128 of either; at most 128 answers are drawn over all of them.
    pub prompt: Prompts,
    /// The longest answer in tokens; 16 if left out.
    pub max_tokens: Option<u64>,
    /// From 0, always the most likely token, to 2; 1 if left out.
    pub temperature: Option<f64>,
    /// Only the most likely tokens that together have this probability; 1 if left out.
    pub top_p: Option<f64>,
    /// How many answers to each prompt, from 1 to 128; 1 if left out.
    pub n: Option<u32>,
    /// From `n` to 20: so many answers are drawn, and the `n` with the highest log-probability per token given. Not with
    /// `stream` if it is above `n`.
    pub best_of: Option<u32>,
    /// The prompt is given in front of the answer.
    pub echo: Option<bool>,
    /// From 0 to 5: tells the log-probability of each token, and so many of the most likely ones in each place.
    pub logprobs: Option<u32>,
    /// From -2 to 2; taken from the logit of each token that the answer has already.
    pub presence_penalty: Option<f64>,
    /// From -2 to 2; the same, as many times as the answer has the token.
    pub frequency_penalty: Option<f64>,
    /// By token id, from -100 to 100: added to the token's logit.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// The same seed and request draw the same tokens; a new one each time if left out.
    pub seed: Option<i64>,
    /// Up to 4 texts before which the answer ends.
    #[serde(default)]
    pub stop: Stop,
    /// Answers in chunks, as server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
}

/// What is gone on with: texts or token ids.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = PromptsSchema)]
pub struct Prompts(pub Vec<OnePrompt>);

/// How prompts may be given.
#[derive(ToSchema)]
#[schema(title = "Prompts")]
#[serde(untagged)]
pub enum PromptsSchema {
    /// One text.
    Text(String),
    /// Several.
    Texts(Vec<String>),
    /// One prompt's token ids.
    Ids(Vec<u32>),
    /// Several prompts' token ids.
    ManyIds(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnePrompt {
    /// A text.
    Text(String),
    /// Token ids.
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
    /// Reads a body; takes away what changes nothing.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a field is unknown, wrong, or asks for what cannot be done.
    pub fn read(mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        remove_ignored(&mut fields)?;
        if fields.remove("suffix").is_some_and(|suffix| !suffix.is_null()) {
            let message = "Unsupported 'suffix': a text is only gone on with at its end.";
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
            let message = "Invalid 'best_of': which answers are the best is known at their end; leave 'stream' out.";
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

    /// How many answers to each prompt are given.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// How many answers to each prompt are drawn.
    pub fn drawn(&self) -> u32 {
        self.best_of.unwrap_or_else(|| self.choices())
    }

    /// Whether the prompt is given too.
    pub fn echoes(&self) -> bool {
        self.echo == Some(true)
    }

    /// Whether the answer comes in chunks.
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether the stream ends with the usage.
    pub fn streams_usage(&self) -> bool {
        self.shared().streams_usage()
    }

    /// How tokens are drawn; `dice` stands in for a seed that was not given.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a bias is for no token.
    pub fn sampling(&self, dice: u64) -> Result<Sampling, ApiError> {
        // Which answers are the best is seen by their tokens' log-probabilities.
        let ranked = (self.drawn() > self.choices()).then_some(0);
        Ok(Sampling {
            max_tokens: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            logprobs: self.logprobs.or(ranked),
            ..self.shared().sampling(dice)?
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

    /// One step beyond each bound is refused by the field's name, and the bound itself is taken.
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

    /// 64 prompts with 128 answers each are 8,192 sequences, for which everybody else would wait.
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
