//! The sampling parameters that chat and text completions share, in OpenAI's terms.

use std::collections::BTreeMap;

use attune_domain::{
    serve::{MAX_GENERATED_TOKENS, Sampling},
    text::message_text::truncated,
};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::error::InferenceError;

/// The maximum number of stop sequences. Source: OpenAI's API reference.
const MOST_STOPS: usize = 4;
/// The maximum length of a stop sequence, in bytes. A stream holds back as much text as may begin one.
const STOP_BYTES: usize = 1 << 10;
/// The maximum number of biased tokens. Each bias is added each time a token of an answer is sampled.
const MOST_BIASES: usize = 1024;
/// The maximum number of choices to generate for one request, over all of its prompts.
const MOST_SEQUENCES: u32 = 128;
/// The largest `max_tokens` and `max_completion_tokens`; the model's context length ends an answer much earlier.
const MOST_TOKENS: u64 = 1 << 31;
/// The maximum length of a model's name, in bytes.
const MODEL_NAME_BYTES: usize = 512;
/// The largest `n`. Source: OpenAI's API reference.
const MOST_CHOICES: u32 = 128;
/// The largest absolute value of a penalty. Source: OpenAI's API reference.
const LARGEST_PENALTY: f64 = 2.0;
/// The largest `top_k`: more than any vocabulary has.
const LARGEST_TOP_K: i32 = 1 << 20;
/// The range of `repetition_penalty`: with a smaller one, logits could become infinite.
const REPETITION_PENALTIES: (f64, f64) = (0.01, 100.0);
/// The largest absolute value of a bias. Source: OpenAI's API reference.
const LARGEST_BIAS: f64 = 100.0;

/// Sequences at which generation stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, ToSchema)]
#[schema(value_type = Option<Vec<String>>)]
pub struct Stop(pub Vec<String>);

struct StopVisitor;

impl<'de> serde::de::Visitor<'de> for StopVisitor {
    type Value = Stop;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Stop, E> {
        Ok(Stop::default())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Stop, E> {
        Ok(Stop(vec![text.to_owned()]))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Stop, A::Error> {
        Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(Stop)
    }
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StopVisitor)
    }
}

/// Options of a streamed response.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// If `true`, the stream ends with a chunk that has the token usage.
    pub include_usage: Option<bool>,
}

/// The fields that chat and text completions share.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "described where they are read")]
pub struct Shared<'a> {
    pub temperature: Option<f64>,
    pub top_k: Option<i32>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Option<&'a BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    pub stop: &'a Stop,
    pub n: Option<u32>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
}

/// Borrows the shared fields of a request body, which has all of them.
macro_rules! shared {
    ($body:expr) => {
        $crate::wire::sampling::Shared {
            temperature: $body.temperature,
            top_k: $body.top_k,
            top_p: $body.top_p,
            min_p: $body.min_p,
            repetition_penalty: $body.repetition_penalty,
            presence_penalty: $body.presence_penalty,
            frequency_penalty: $body.frequency_penalty,
            logit_bias: $body.logit_bias.as_ref(),
            seed: $body.seed,
            stop: &$body.stop,
            n: $body.n,
            stream: $body.stream,
            stream_options: $body.stream_options,
        }
    };
}
pub(super) use shared;

impl Shared<'_> {
    /// Checks each field's range.
    fn check(&self) -> Result<(), InferenceError> {
        range("temperature", self.temperature, 0.0, 2.0)?;
        range("top_k", self.top_k.map(f64::from), -1.0, f64::from(LARGEST_TOP_K))?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, REPETITION_PENALTIES.0, REPETITION_PENALTIES.1)?;
        range("presence_penalty", self.presence_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)?;
        range("frequency_penalty", self.frequency_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)?;
        range("n", self.n.map(f64::from), 1.0, f64::from(MOST_CHOICES))?;
        if self.stop.0.len() > MOST_STOPS {
            return Err(InferenceError::invalid(
                "stop",
                format!("Invalid 'stop': at most {MOST_STOPS} texts are taken."),
            ));
        }
        if self.stop.0.iter().any(String::is_empty) {
            return Err(InferenceError::invalid("stop", "Invalid 'stop': stop strings must not be empty."));
        }
        if let Some(long) = self.stop.0.iter().map(String::len).find(|length| *length > STOP_BYTES) {
            let message = format!("Invalid 'stop': a stop string has {long} bytes; at most {STOP_BYTES} are allowed.");
            return Err(InferenceError::invalid("stop", message));
        }
        let biases = self.logit_bias.map_or(0, BTreeMap::len);
        if biases > MOST_BIASES {
            let message = format!("Invalid 'logit_bias': {biases} tokens; at most {MOST_BIASES} are allowed.");
            return Err(InferenceError::invalid("logit_bias", message));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            return Err(InferenceError::invalid("stream_options", "'stream_options' only goes with 'stream': true."));
        }
        Ok(())
    }

    /// Parses the keys of `logit_bias` as token IDs.
    fn biases(&self) -> Result<BTreeMap<u32, f64>, InferenceError> {
        let mut biases = BTreeMap::new();
        for (id, bias) in self.logit_bias.into_iter().flatten() {
            let param = format!("logit_bias.{}", truncated(id));
            let Ok(token) = id.parse() else {
                return Err(InferenceError::invalid(
                    &param,
                    format!("Invalid '{param}': a token's id is a whole number."),
                ));
            };
            range(&param, Some(*bias), -LARGEST_BIAS, LARGEST_BIAS)?;
            biases.insert(token, *bias);
        }
        Ok(biases)
    }

    /// Checks each field, and returns the sampling parameters. The argument is the seed if the request sets none.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`], which names the field.
    pub fn sampling(&self, default_seed: u64) -> Result<Sampling, InferenceError> {
        self.check()?;
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            // -1 and 0 request all tokens, as in vLLM and transformers.
            top_k: self.top_k.and_then(|most| u32::try_from(most).ok()).filter(|most| *most > 0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.biases()?,
            seed: self.seed.map_or(default_seed, i64::cast_unsigned),
            stop: self.stop.0.clone(),
            ..Sampling::default()
        })
    }

    /// Returns the number of choices to return for each prompt.
    #[must_use]
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Returns whether the answer is streamed.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Returns whether the stream ends with a usage chunk.
    #[must_use]
    pub fn streams_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage) == Some(true)
    }
}

/// Refuses a streamed answer to a row of a batch.
pub(crate) fn refuse_stream(streams: bool) -> Result<(), InferenceError> {
    if streams {
        return Err(InferenceError::unsupported("stream", "A batch's requests cannot be streamed. Omit 'stream'."));
    }
    Ok(())
}

/// Checks that a number is in its range.
///
/// # Errors
/// [`InferenceError::Invalid`] with the field, the value and the range.
pub fn range(name: &str, value: Option<f64>, least: f64, most: f64) -> Result<(), InferenceError> {
    match value {
        Some(given) if !(least..=most).contains(&given) => {
            Err(InferenceError::invalid(name, format!("Invalid '{name}': {given} is not from {least} to {most}.")))
        }
        _ => Ok(()),
    }
}

/// Checks the number of choices over all prompts of a request.
///
/// # Errors
/// [`InferenceError::Invalid`], which names `param`.
pub fn check_sequences(param: &str, prompts: usize, answers: u32) -> Result<(), InferenceError> {
    let all = u32::try_from(prompts).unwrap_or(u32::MAX).saturating_mul(answers);
    if all <= MOST_SEQUENCES {
        return Ok(());
    }
    let message = format!(
        "Invalid '{param}': {prompts} prompts with {answers} answers each are {all} answers; at most {MOST_SEQUENCES} \
         are allowed in one request."
    );
    Err(InferenceError::invalid(param, message))
}

/// Checks the number of tokens that may be generated for all answers to a request with several. Without `max_tokens`,
/// the replica checks them, since only the context length limits an answer then.
///
/// # Errors
/// [`InferenceError::Invalid`], which names `param`.
pub fn check_generated(param: &str, answers: u32, max_tokens: Option<u64>) -> Result<(), InferenceError> {
    let Some(most) = max_tokens.filter(|_| answers > 1) else { return Ok(()) };
    if most.saturating_mul(answers.into()) <= MAX_GENERATED_TOKENS {
        return Ok(());
    }
    let message = format!(
        "Invalid '{param}': {answers} answers of up to {most} tokens each; at most {MAX_GENERATED_TOKENS} tokens may \
         be generated for a request with several answers. Request fewer or shorter ones."
    );
    Err(InferenceError::invalid(param, message))
}

/// Checks the requested maximum number of tokens.
///
/// # Errors
/// [`InferenceError::Invalid`], which names `param`.
pub fn check_max_tokens(param: &str, value: Option<u64>, least: u64) -> Result<(), InferenceError> {
    match value {
        Some(given) if !(least..=MOST_TOKENS).contains(&given) => Err(InferenceError::invalid(
            param,
            format!("Invalid '{param}': {given} is not from {least} to {MOST_TOKENS}."),
        )),
        _ => Ok(()),
    }
}

/// Checks the length of a model's name.
///
/// # Errors
/// [`InferenceError::Invalid`], which names `model`.
pub fn check_model(name: &str) -> Result<(), InferenceError> {
    if name.len() <= MODEL_NAME_BYTES {
        return Ok(());
    }
    let message = format!("Invalid 'model': {} bytes; at most {MODEL_NAME_BYTES} are allowed.", name.len());
    Err(InferenceError::invalid("model", message))
}
