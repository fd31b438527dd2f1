//! A request to a replica, and its sampling parameters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    adapter::{AdapterKey, AdapterRef},
    form::{Form, Tools},
    prompt::Prompt,
};

/// The priority class of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// A caller waits for the answer.
    #[default]
    Live,
    /// A row of a batch, which yields to live requests.
    Batch,
}

/// The sampling parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The temperature; 0 always selects the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens are sampled; `None`: all.
    pub top_k: Option<u32>,
    /// The nucleus: only the most likely tokens that together have this probability are sampled.
    pub top_p: f64,
    /// Only tokens with at least this fraction of the most likely token's probability are sampled; 0: all.
    pub min_p: f64,
    /// The seed. The same seed and request sample the same tokens, whatever else is in the batch; with a draft model,
    /// or with keys and values in 8 bits, they may differ. Further answers to the same request use seeds derived from
    /// this one.
    pub seed: u64,
    /// The stop strings; the answer ends before the first of them.
    pub stop: Vec<String>,
    /// The maximum number of tokens; `None`: as many as fit into the context.
    pub max_tokens: Option<u64>,
    /// The factor that makes tokens of the prompt and of the answer less likely: positive logits are divided by it,
    /// negative ones multiplied; 1: none.
    pub repetition_penalty: f64,
    /// The amount subtracted from the logits of tokens that the answer already contains.
    pub presence_penalty: f64,
    /// The amount subtracted from the logits of a token for each of its occurrences in the answer.
    pub frequency_penalty: f64,
    /// The amounts added to the logits of these token IDs.
    pub logit_bias: BTreeMap<u32, f64>,
    /// The number of most likely tokens whose log-probabilities are returned at each position, in addition to the
    /// log-probability of the sampled token; `None`: no log-probabilities.
    pub logprobs: Option<u32>,
    /// `true`: end tokens do not end the answer, which then continues to its maximum length or to a stop string.
    #[serde(default)]
    pub ignore_end_tokens: bool,
}

impl Default for Sampling {
    /// Returns the defaults of OpenAI's API.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            stop: Vec::new(),
            max_tokens: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            ignore_end_tokens: false,
        }
    }
}

/// A request to a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// The request ID, for logs and traces.
    pub request_id: String,
    /// The project of the request: opaque, and the same for all requests of one project. Projects take turns.
    pub project: String,
    /// The priority class.
    pub priority: Priority,
    /// The adapter; `None`: the base model without an adapter.
    pub adapter: Option<AdapterRef>,
    /// An adapter to keep in memory: if the replica has it there, this counts as a use of it.
    #[serde(default)]
    pub keep: Option<AdapterKey>,
    /// The prompt.
    pub prompt: Prompt,
    /// The maximum number of tokens of a text prompt: of a longer one, only the last tokens are used, after the tokens
    /// that the tokenizer adds before a text. `None`: the whole prompt.
    #[serde(default)]
    pub truncate: Option<u64>,
    /// `true`: the prompt's text is returned too, with its tokens' log-probabilities if those of the answer are
    /// requested.
    pub echo: bool,
    /// The required format of the answer's text.
    pub form: Form,
    /// The tools that the answer may call; only for a chat prompt.
    pub tools: Option<Tools>,
    /// The number of answers, at least one.
    pub choices: u32,
    /// The sampling parameters.
    pub sampling: Sampling,
}
