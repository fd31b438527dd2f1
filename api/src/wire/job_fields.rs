//! Attune's own fields of a job: `adapter`, `quantization` and `trainer`. `domain::spec` defines their defaults and
//! ranges; this file only defines their JSON form.

use attune_domain::spec::Requested;
use serde::Deserialize;
use utoipa::ToSchema;

use super::auto::{Auto, AutoBool, AutoFloat, AutoInt};

/// The adapter's LoRA configuration, with PEFT's names.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
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

impl AdapterFields {
    pub(super) fn lay_into(&self, asked: &mut Requested) {
        asked.rank = self.rank;
        asked.lora_alpha = self.lora_alpha;
        asked.target_modules.clone_from(&self.target_modules);
        asked.lora_dropout = self.lora_dropout;
        asked.use_rslora = self.use_rslora;
        asked.use_dora = self.use_dora;
    }
}

/// The quantization of the base model while training.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizationFields {
    /// The type: `nf4` (the default), `int8` or `none`.
    pub r#type: Option<String>,
    /// If `true`, the scales of `nf4` are quantized too. Defaults to `true`.
    pub double_quant: Option<bool>,
}

impl QuantizationFields {
    pub(super) fn lay_into(&self, asked: &mut Requested) {
        asked.quantization.clone_from(&self.r#type);
        asked.double_quant = self.double_quant;
    }
}

/// The trainer's settings.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
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

impl TrainerFields {
    pub(super) fn lay_into(&self, asked: &mut Requested) {
        asked.learning_rate = self.learning_rate.and_then(|rate| rate.0);
        asked.learning_rate_auto = self.learning_rate == Some(Auto(None));
        asked.schedule.clone_from(&self.schedule);
        asked.num_cycles = self.num_cycles;
        asked.warmup_ratio = self.warmup_ratio;
        asked.optimizer.clone_from(&self.optimizer);
        asked.weight_decay = self.weight_decay;
        asked.loraplus_lr_ratio = self.loraplus_lr_ratio;
        asked.max_grad_norm = self.max_grad_norm;
        asked.neftune_noise_alpha = self.neftune_noise_alpha;
        asked.max_steps = self.max_steps;
        asked.max_length = self.max_length;
        asked.over_length.clone_from(&self.over_length);
        asked.train_on_prompt = self.train_on_prompt;
        asked.micro_batch_size = self.micro_batch_size.and_then(|rows| rows.0);
        asked.gradient_checkpointing = self.gradient_checkpointing.and_then(|is_on| is_on.0);
        asked.checkpoint_every_steps = self.checkpoint_every_steps;
        asked.eval_every_steps = self.eval_every_steps;
        asked.early_stopping_patience = self.early_stopping_patience;
        asked.early_stopping_threshold = self.early_stopping_threshold;
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::TrainSpec;
    use serde_json::{Value, json};

    use crate::{http::json_body::from_value, wire::job::NewJob};

    fn spec(more: Value) -> TrainSpec {
        let mut body = json!({"model": "m", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        TrainSpec::check(&from_value::<NewJob>(body).unwrap().requested().unwrap(), 360, 8192).unwrap()
    }

    /// Every field is passed on: each one, set to a value that is not its default, changes the spec field of the same
    /// name.
    #[test]
    fn every_field_reaches_the_spec_under_its_own_name() {
        let plain = serde_json::to_value(spec(json!({}))).unwrap();
        let trainer = json!({"learning_rate": 0.001, "schedule": "linear", "warmup_ratio": 0.5,
            "optimizer": "adamw_8bit", "weight_decay": 0.1, "loraplus_lr_ratio": 16.0, "max_grad_norm": 0.5,
            "neftune_noise_alpha": 5.0, "max_steps": 7, "max_length": 100, "over_length": "split",
            "train_on_prompt": true, "micro_batch_size": 2, "gradient_checkpointing": false,
            "checkpoint_every_steps": 3, "eval_every_steps": 4});
        for (name, value) in trainer.as_object().unwrap() {
            let changed = serde_json::to_value(spec(json!({"trainer": {name: value}}))).unwrap();
            assert_eq!(&changed[name], value);
            assert_ne!(changed[name], plain[name], "{name} has its default");
        }
        let adapter = json!({"rank": 8, "lora_alpha": 8.0, "target_modules": ["q_proj"], "lora_dropout": 0.1,
            "use_rslora": true, "use_dora": true});
        for (name, value) in adapter.as_object().unwrap() {
            let changed = serde_json::to_value(spec(json!({"adapter": {name: value}}))).unwrap();
            assert_eq!(&changed["adapter"][name], value);
            assert_ne!(changed["adapter"][name], plain["adapter"][name], "{name} has its default");
        }
        let stopping = json!({"eval_every_steps": 4, "early_stopping_patience": 2, "early_stopping_threshold": 0.25});
        let changed = serde_json::to_value(spec(json!({"trainer": stopping}))).unwrap();
        assert_eq!(
            (&changed["early_stopping_patience"], &changed["early_stopping_threshold"]),
            (&json!(2), &json!(0.25))
        );
        let restarts = spec(json!({"trainer": {"schedule": "cosine_with_restarts", "num_cycles": 3}}));
        assert_eq!(restarts.num_cycles, 3);
        let int8 = serde_json::to_value(spec(json!({"quantization": {"type": "int8"}}))).unwrap();
        assert_eq!(int8["quantization"], json!({"type": "int8"}));
        let method = serde_json::to_value(spec(json!({"method": {"type": "continued_pretraining"}}))).unwrap();
        assert_eq!(method["method"], "continued_pretraining");
    }

    #[test]
    fn auto_is_what_is_left_out_except_for_the_learning_rate() {
        let auto = spec(json!({"trainer": {"micro_batch_size": "auto", "gradient_checkpointing": "auto"}}));
        assert_eq!(auto, spec(json!({})));
        let found = spec(json!({"trainer": {"learning_rate": "auto"}}));
        assert!(found.learning_rate_auto && !auto.learning_rate_auto);
        assert!(!spec(json!({"trainer": {"learning_rate": null}})).learning_rate_auto);
    }
}
