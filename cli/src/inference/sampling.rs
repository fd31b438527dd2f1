//! Flags of what a model is asked for, alike in `attune chat` and `attune complete`.

use serde_json::{Map, Value, json};

/// Which model, and how its tokens are drawn.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// A base model's name, or a tuned one's (ft:…)
    #[arg(long, short)]
    pub(crate) model: String,
    /// 0 always takes the likeliest token
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw only from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// The answer ends after so many tokens
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u64>,
    /// The same seed draws the same answer
    #[arg(long)]
    seed: Option<i64>,
    /// The answer ends before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// A request's fields. Only what was given: the API knows the defaults.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let fields = [
            ("model", Some(json!(self.model))),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}
