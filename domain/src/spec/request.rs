//! A job's training parameters as a user requests them. An omitted value has its default; the files of the groups
//! define the defaults and ranges, this file only the JSON form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auto::{AutoBool, AutoFloat, AutoInt};

/// The training parameters as the user requested them.
#[derive(Debug, Clone, Default)]
pub struct Requested {
    /// The seed.
    pub seed: Option<i64>,
    /// The name of the training method.
    pub method: Option<String>,
    /// OpenAI's hyperparameters.
    pub hyperparameters: Hyperparameters,
    /// The adapter's LoRA configuration.
    pub adapter: AdapterFields,
    /// The quantization of the base model.
    pub quantization: QuantizationFields,
    /// The trainer's settings.
    pub trainer: TrainerFields,
    /// The variables of the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// OpenAI's hyperparameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// The number of epochs over the training rows. `auto` is 3.
    pub n_epochs: AutoInt,
    /// The number of rows per optimizer step. `auto` is about 1/64 of the rows, from 4 to 32.
    pub batch_size: AutoInt,
    /// The learning rate as a multiple of 2e-4. `auto` is 1.
    pub learning_rate_multiplier: AutoFloat,
}

/// The adapter's LoRA configuration, with PEFT's names.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AdapterFields {
    /// The LoRA rank, from 1 to 256. Defaults to 16.
    pub rank: Option<i64>,
    /// The LoRA alpha. Defaults to twice the rank.
    pub lora_alpha: Option<f64>,
    /// The target modules: some of the seven projections, or `["all-linear"]`, the default.
    pub target_modules: Option<Vec<String>>,
    /// The dropout probability of the adapter's inputs while training, from 0 to 0.9. Defaults to 0.
    pub lora_dropout: Option<f64>,
    /// If `true`, scales the correction by `lora_alpha / √rank` instead of `lora_alpha / rank` (rsLoRA). Defaults to
    /// `false`.
    pub use_rslora: Option<bool>,
    /// If `true`, trains the magnitudes of the corrected weight's rows (DoRA). Defaults to `false`.
    pub use_dora: Option<bool>,
}

/// The quantization of the base model while training.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct QuantizationFields {
    /// The type: `nf4` (the default), `int8` or `none`.
    pub r#type: Option<String>,
    /// If `true`, the scales of `nf4` are quantized too. Defaults to `true`.
    pub double_quant: Option<bool>,
}

/// The trainer's settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TrainerFields {
    /// The peak learning rate, instead of `learning_rate_multiplier`. `auto` chooses it in a short learning-rate range
    /// test before the first step. Defaults to 2e-4.
    pub learning_rate: Option<AutoFloat>,
    /// The learning-rate schedule: `constant`, `linear`, `cosine` (the default) or `cosine_with_restarts`.
    pub schedule: Option<String>,
    /// The number of cycles of `cosine_with_restarts`. Defaults to 1.
    pub num_cycles: Option<i64>,
    /// The share of all steps used for warmup. Defaults to 0.03.
    pub warmup_ratio: Option<f64>,
    /// The optimizer: `adamw` (the default), or `adamw_8bit`, which keeps its moments in 8 bits.
    pub optimizer: Option<String>,
    /// The weight decay of AdamW. Defaults to 0.
    pub weight_decay: Option<f64>,
    /// The learning rate of the adapter's `b` factors as a multiple of that of the `a` factors (LoRA+). Defaults to 1.
    pub loraplus_lr_ratio: Option<f64>,
    /// The maximum gradient norm; larger gradients are clipped to it. Defaults to 1.
    pub max_grad_norm: Option<f64>,
    /// The NEFTune noise on the embeddings while training. Defaults to 0, no noise.
    pub neftune_noise_alpha: Option<f64>,
    /// The maximum number of optimizer steps, if the epochs do not end sooner.
    pub max_steps: Option<i64>,
    /// The maximum length of a row in tokens; `over_length` decides how longer rows are handled.
    pub max_length: Option<i64>,
    /// The policy for longer rows: `error` (the default) fails the job and names the line; `truncate` keeps the
    /// beginning; `drop` omits the row; `split` divides it into several rows.
    pub over_length: Option<String>,
    /// If `true`, the loss covers every token, not only the answers. Defaults to `false`.
    pub train_on_prompt: Option<bool>,
    /// The number of rows per forward pass, or `auto` (the default), which depends on the free memory. The number of
    /// rows per optimizer step is always `batch_size`.
    pub micro_batch_size: Option<AutoInt>,
    /// If `true`, recomputes activations in the backward pass instead of storing them. `auto` (the default) does so if
    /// they do not fit in memory.
    pub gradient_checkpointing: Option<AutoBool>,
    /// The number of optimizer steps between checkpoints. Defaults to 20.
    pub checkpoint_every_steps: Option<i64>,
    /// The number of optimizer steps between validations. Defaults to 0: only at the end. Requires a validation file.
    pub eval_every_steps: Option<i64>,
    /// The number of consecutive validations without a lower loss after which training ends with the adapter of the
    /// best one. Defaults to 0: never. Requires `eval_every_steps`.
    pub early_stopping_patience: Option<i64>,
    /// The minimum decrease of the loss that counts as an improvement. Defaults to 0.
    pub early_stopping_threshold: Option<f64>,
}
