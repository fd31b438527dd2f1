//! What a job asks for, checked.
//!
//! `api` turns its wire body into a [`Requested`]; [`TrainSpec::check`] (in `check.rs`, the one place that knows every
//! default and every allowed range) turns that into numbers, or into a [`BadField`](crate::bad_field::BadField) that
//! names the field, the value and what is allowed. Everything after that point works with a [`TrainSpec`] and decides
//! nothing anew.

mod check;
mod continuing;
mod quantization;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use check::BASE_LEARNING_RATE;
pub use quantization::Quantization;

use crate::{dataset::RowFormat, template_kwargs::TemplateKwargs};

/// What the rows are, and which of their tokens are learnt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Chats, or prompts and completions; the answers are learnt.
    #[default]
    Supervised,
    /// Plain texts, every token of which is learnt. Documents are packed into sequences of `max_length` tokens; none
    /// sees another.
    ContinuedPretraining,
}

impl Method {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::ContinuedPretraining => "continued_pretraining",
        }
    }

    /// What rows the method learns from, in the user's words.
    const fn wanted(self) -> &'static str {
        match self {
            Self::Supervised => "chat or prompt/completion rows",
            Self::ContinuedPretraining => "text rows",
        }
    }

    /// Whether the method learns from rows of this format.
    ///
    /// # Errors
    /// [`WrongFormat`]: it does not.
    pub const fn takes(self, format: RowFormat) -> Result<(), WrongFormat> {
        let right = match self {
            Self::Supervised => matches!(format, RowFormat::Chat | RowFormat::Completion),
            Self::ContinuedPretraining => matches!(format, RowFormat::Text),
        };
        if right { Ok(()) } else { Err(WrongFormat { method: self, format }) }
    }
}

/// A file of rows that the method cannot learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("method.type '{}' learns from {}, and the file has {format} rows", method.name(), method.wanted())]
pub struct WrongFormat {
    /// The job's.
    pub method: Method,
    /// The file's.
    pub format: RowFormat,
}

/// What becomes of a row that has more than `max_length` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLength {
    /// The job fails and names its line.
    #[default]
    Error,
    /// Its first `max_length` tokens are kept.
    Truncate,
    /// It is left out.
    Drop,
    /// It becomes several rows of at most `max_length` tokens, none of which sees another.
    Split,
}

impl OverLength {
    /// The word on the wire.
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

/// How the factors move along their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// AdamW with its moments in `f32`.
    #[default]
    Adamw,
    /// AdamW with its moments in 8 bits, in blocks of 256.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to zero.
    Linear,
    /// Falls along half a cosine to zero.
    Cosine,
    /// Falls along half a cosine to zero, `num_cycles` times from the peak.
    CosineWithRestarts,
}

impl Schedule {
    /// The schedule of this name.
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

/// The adapter to train. Names as PEFT has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// Rank of the two factors.
    pub rank: u32,
    /// The correction is scaled by `lora_alpha / rank`.
    pub lora_alpha: f64,
    /// Which projections have one, in the order of a block.
    pub target_modules: Vec<String>,
    /// Share of the correction's inputs that is set to zero while training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// The correction is scaled by `lora_alpha / √rank` instead. Source: Kalajdzievski, arXiv:2312.03732.
    #[serde(default)]
    pub use_rslora: bool,
    /// The corrected weight's rows are scaled to a trained length. Source: Liu et al., arXiv:2402.09353.
    #[serde(default)]
    pub use_dora: bool,
}

impl AdapterSpec {
    /// Plain LoRA: no dropout, no variant of it.
    #[must_use]
    pub fn lora(rank: u32, lora_alpha: f64, target_modules: &[&str]) -> Self {
        let target_modules = target_modules.iter().map(|name| (*name).to_owned()).collect();
        Self { rank, lora_alpha, target_modules, lora_dropout: 0.0, use_rslora: false, use_dora: false }
    }
}

/// A checked training job, every default filled in. Part of the run contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// Passes over the training rows.
    pub n_epochs: u32,
    /// Stops after this many optimiser steps, if the epochs have not ended by then.
    pub max_steps: Option<u64>,
    /// Rows per optimiser step, over all micro-batches.
    pub effective_batch_size: u32,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// What `learning_rate` is a multiple of, as OpenAI's clients see it.
    pub learning_rate_multiplier: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Share of all steps in which it rises from zero.
    pub warmup_ratio: f64,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// Gradients with a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
    /// Seeds the factors and the order of rows.
    pub seed: u64,
    /// The longest row that is trained on, in tokens; `over_length` says what becomes of a longer one.
    pub max_length: u32,
    /// Optimiser steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Optimiser steps between passes over the validation file; 0: only at the end.
    pub eval_every_steps: u64,
    /// The adapter.
    pub adapter: AdapterSpec,
    /// The base while training.
    pub quantization: Quantization,
    /// What the rows are.
    #[serde(default)]
    pub method: Method,
    /// Prompts are learnt too.
    #[serde(default)]
    pub train_on_prompt: bool,
    /// What becomes of rows above `max_length`.
    #[serde(default)]
    pub over_length: OverLength,
    /// How the factors move.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// The learning rate of the `b` factors as a multiple of that of the `a` factors; 1: plain LoRA.
    /// Source: Hayou et al., arXiv:2402.12354.
    #[serde(default = "one")]
    pub loraplus_lr_ratio: f64,
    /// Uniform noise of this size over `√(tokens · width)` on the embeddings while training; 0: none.
    /// Source: Jain et al., arXiv:2310.05914.
    #[serde(default)]
    pub neftune_noise_alpha: f64,
    /// Falls of `cosine_with_restarts`.
    #[serde(default = "once")]
    pub num_cycles: u32,
    /// `learning_rate` is what a short range test finds before the first step.
    #[serde(default)]
    pub learning_rate_auto: bool,
    /// Validations in a row without a better loss after which the training ends; 0: never. If it is not 0, the adapter
    /// is that of the best validation.
    #[serde(default)]
    pub early_stopping_patience: u64,
    /// By how much a loss must be lower to count as better.
    #[serde(default)]
    pub early_stopping_threshold: f64,
    /// Rows that go through the decoder at once; `None`: by the plan.
    #[serde(default)]
    pub micro_batch_size: Option<u32>,
    /// Only each block's input is kept for the backward; `None`: by the plan.
    #[serde(default)]
    pub gradient_checkpointing: Option<bool>,
    /// Variables that the chat template gets with each row.
    #[serde(default, skip_serializing_if = "TemplateKwargs::is_empty")]
    pub chat_template_kwargs: TemplateKwargs,
}

const fn one() -> f64 {
    1.0
}

const fn once() -> u32 {
    1
}

/// What the user gave; `None` is `"auto"`.
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
    /// `"auto"` was given for the learning rate: a range test is to find it.
    pub learning_rate_auto: bool,
    pub early_stopping_patience: Option<i64>,
    pub early_stopping_threshold: Option<f64>,
    pub micro_batch_size: Option<i64>,
    pub gradient_checkpointing: Option<bool>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
}
