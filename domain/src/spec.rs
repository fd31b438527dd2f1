//! The specification of a training job, and its validation.
//!
//! `api` turns its request body into a `Requested`; `TrainSpec::check` (in `check.rs`, the only place that defines
//! defaults and allowed ranges) turns that into values, or into a [`BadField`](crate::bad_field::BadField) that names
//! the field, the value and the allowed values. All later code uses a `TrainSpec` and applies no defaults of its own.

mod check;
mod continuing;
mod method;
mod quantization;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use check::BASE_LEARNING_RATE;
pub use method::{Method, WrongFormat};
pub use quantization::Quantization;

use crate::template_kwargs::TemplateKwargs;

/// The handling of a row that has more than `max_length` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLength {
    /// The job fails, and its error names the row's line.
    #[default]
    Error,
    /// The row is cut to its first `max_length` tokens.
    Truncate,
    /// The row is skipped.
    Drop,
    /// The row is split into several rows of at most `max_length` tokens, which do not attend to each other.
    Split,
}

impl OverLength {
    /// Returns the name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Truncate => "truncate",
            Self::Drop => "drop",
            Self::Split => "split",
        }
    }
}

/// The optimizer of the LoRA factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// AdamW with `f32` moments.
    #[default]
    Adamw,
    /// AdamW with 8-bit moments, quantized in blocks of 256.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The learning rate is constant.
    Constant,
    /// Linear decay to zero.
    Linear,
    /// Half-cosine decay to zero.
    Cosine,
    /// Half-cosine decay to zero, restarted at the peak `num_cycles` times in total.
    CosineWithRestarts,
}

impl Schedule {
    /// Returns the schedule with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "constant" => Self::Constant,
            "linear" => Self::Linear,
            "cosine" => Self::Cosine,
            "cosine_with_restarts" => Self::CosineWithRestarts,
            _ => return None,
        })
    }
}

/// The adapter's hyperparameters, with the names that PEFT uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// The rank of the two factors.
    pub rank: u32,
    /// The numerator of the adapter's scale, `lora_alpha / rank`.
    pub lora_alpha: f64,
    /// The projections that have an adapter, in the order of a block.
    pub target_modules: Vec<String>,
    /// The dropout probability of the adapter's inputs during training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// rsLoRA: the scale is `lora_alpha / √rank` instead. Source: Kalajdzievski, arXiv:2312.03732.
    #[serde(default)]
    pub use_rslora: bool,
    /// DoRA: the rows of the adapted weight are scaled to a trained magnitude. Source: Liu et al., arXiv:2402.09353.
    #[serde(default)]
    pub use_dora: bool,
}

impl AdapterSpec {
    /// Returns plain LoRA: no dropout, no rsLoRA, no DoRA.
    #[must_use]
    pub fn lora(rank: u32, lora_alpha: f64, target_modules: &[&str]) -> Self {
        let target_modules = target_modules.iter().map(|name| (*name).to_owned()).collect();
        Self { rank, lora_alpha, target_modules, lora_dropout: 0.0, use_rslora: false, use_dora: false }
    }
}

/// A validated training specification with all defaults filled in. Part of the contract with trainers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The number of epochs.
    pub n_epochs: u32,
    /// The number of optimizer steps after which the training ends, unless the epochs have ended before.
    pub max_steps: Option<u64>,
    /// The number of rows per optimizer step, over all micro-batches.
    pub effective_batch_size: u32,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The factor by which `learning_rate` differs from [`BASE_LEARNING_RATE`]; OpenAI's clients read it.
    pub learning_rate_multiplier: f64,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The share of all steps in which the learning rate rises from zero.
    pub warmup_ratio: f64,
    /// The decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// The global gradient norm above which gradients are clipped to it.
    pub max_grad_norm: f64,
    /// The seed of the factors' initialization and of the order of rows.
    pub seed: u64,
    /// The maximum length of a training row in tokens; `over_length` defines how a longer row is handled.
    pub max_length: u32,
    /// The number of optimizer steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// The number of optimizer steps between validations; 0: only one, at the end.
    pub eval_every_steps: u64,
    /// The adapter's hyperparameters.
    pub adapter: AdapterSpec,
    /// The quantization of the base during training.
    pub quantization: Quantization,
    /// The training method.
    #[serde(default)]
    pub method: Method,
    /// `true`: the prompts are trained too.
    #[serde(default)]
    pub train_on_prompt: bool,
    /// The handling of rows with more than `max_length` tokens.
    #[serde(default)]
    pub over_length: OverLength,
    /// The optimizer of the factors.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// LoRA+: the learning rate of the `b` factors as a multiple of that of the `a` factors; 1: plain LoRA. Source:
    /// Hayou et al., arXiv:2402.12354.
    #[serde(default = "one")]
    pub loraplus_lr_ratio: f64,
    /// NEFTune: uniform noise of magnitude `alpha / √(tokens · width)` is added to the embeddings during training; 0:
    /// none. Source: Jain et al., arXiv:2310.05914.
    #[serde(default)]
    pub neftune_noise_alpha: f64,
    /// The number of cosine cycles of `cosine_with_restarts`.
    #[serde(default = "once")]
    pub num_cycles: u32,
    /// `true`: a short range test before the first step determines `learning_rate`.
    #[serde(default)]
    pub learning_rate_auto: bool,
    /// The number of consecutive validations without improvement after which the training ends; 0: never. If it is not
    /// 0, the adapter of the best validation is published.
    #[serde(default)]
    pub early_stopping_patience: u64,
    /// The amount by which a validation loss must be lower to count as an improvement.
    #[serde(default)]
    pub early_stopping_threshold: f64,
    /// The number of rows in one forward pass; `None`: the plan chooses it.
    #[serde(default)]
    pub micro_batch_size: Option<u32>,
    /// Gradient checkpointing: only each block's input is kept for the backward pass; `None`: the plan chooses.
    #[serde(default)]
    pub gradient_checkpointing: Option<bool>,
    /// The variables that the chat template receives with each row.
    #[serde(default, skip_serializing_if = "TemplateKwargs::is_empty")]
    pub chat_template_kwargs: TemplateKwargs,
}

const fn one() -> f64 {
    1.0
}

const fn once() -> u32 {
    1
}

/// The training parameters as the user requested them; `None` is `"auto"`.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "each field is the one of TrainSpec with the same name")]
pub struct Requested {
    pub n_epochs: Option<i64>,
    pub max_steps: Option<i64>,
    pub effective_batch_size: Option<i64>,
    pub learning_rate: Option<f64>,
    pub learning_rate_multiplier: Option<f64>,
    pub schedule: Option<String>,
    pub warmup_ratio: Option<f64>,
    pub weight_decay: Option<f64>,
    pub max_grad_norm: Option<f64>,
    pub seed: Option<i64>,
    pub max_length: Option<i64>,
    pub checkpoint_every_steps: Option<i64>,
    pub eval_every_steps: Option<i64>,
    pub rank: Option<i64>,
    pub lora_alpha: Option<f64>,
    pub target_modules: Option<Vec<String>>,
    pub quantization: Option<String>,
    pub double_quant: Option<bool>,
    pub lora_dropout: Option<f64>,
    pub use_rslora: Option<bool>,
    pub use_dora: Option<bool>,
    pub method: Option<String>,
    pub train_on_prompt: Option<bool>,
    pub over_length: Option<String>,
    pub optimizer: Option<String>,
    pub loraplus_lr_ratio: Option<f64>,
    pub neftune_noise_alpha: Option<f64>,
    pub num_cycles: Option<i64>,
    /// `true`: `"auto"` was requested for the learning rate, and a range test determines it.
    pub learning_rate_auto: bool,
    pub early_stopping_patience: Option<i64>,
    pub early_stopping_threshold: Option<f64>,
    pub micro_batch_size: Option<i64>,
    pub gradient_checkpointing: Option<bool>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
}
