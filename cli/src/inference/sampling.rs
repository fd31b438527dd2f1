//! The flags for sampling that `attune chat` and `attune complete` share.

use serde_json::{Map, Value, json};

/// The model, and its sampling parameters.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// The name of a base model or of a fine-tuned model (ft:…)
    #[arg(long, short)]
    pub(crate) model: String,
    /// The sampling temperature; 0 always takes the most likely token
    #[arg(long)]
    temperature: Option<f64>,
    /// Sample only from this many of the most likely tokens
    #[arg(long, value_name = "COUNT")]
    top_k: Option<u32>,
    /// Nucleus sampling: sample only from the most likely tokens whose probabilities add up to this value
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample only tokens with at least this fraction of the most likely token's probability
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Make tokens of the prompt and of the answer less likely (above 1) or more likely (below 1)
    #[arg(long, value_name = "FACTOR")]
    repetition_penalty: Option<f64>,
    /// The maximum number of tokens to generate
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u64>,
    /// The seed; the same seed gives the same answer
    #[arg(long)]
    seed: Option<i64>,
    /// A stop sequence, before which the answer ends; can be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// Returns the request's fields; only flags that are set, since the API knows the defaults.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let fields = [
            ("model", Some(json!(self.model))),
            ("temperature", self.temperature.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("min_p", self.min_p.map(Value::from)),
            ("repetition_penalty", self.repetition_penalty.map(Value::from)),
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}
