//! Attune's own fields of a job: the adapter's shape, how the base is held, how it learns. `domain::spec` knows their
//! defaults and ranges; here is only how they are written down.

use attune_domain::spec::Requested;
use serde::Deserialize;
use utoipa::ToSchema;

use super::auto::{AutoBool, AutoFloat, AutoInt};

/// The adapter's shape. Names as PEFT has them.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterFields {
    /// From 1 to 256; 16 if left out.
    pub rank: Option<i64>,
    /// Twice the rank if left out.
    pub lora_alpha: Option<f64>,
    /// Some of the seven projections, or `["all-linear"]`, which is the default.
    pub target_modules: Option<Vec<String>>,
    /// Share of the adapter's inputs that is set to zero while training, from 0 to 0.9; 0 if left out.
    pub lora_dropout: Option<f64>,
    /// The correction is scaled by `lora_alpha / √rank` instead of `lora_alpha / rank`; `false` if left out.
    pub use_rslora: Option<bool>,
    /// The corrected weight's rows are scaled to a trained length; `false` if left out.
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

/// How the base is held while training.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizationFields {
    /// `nf4`, the default, `int8` or `none`.
    pub r#type: Option<String>,
    /// The scales of `nf4` are quantised too; `true` if left out.
    pub double_quant: Option<bool>,
}

impl QuantizationFields {
    pub(super) fn lay_into(&self, asked: &mut Requested) {
        asked.quantization.clone_from(&self.r#type);
        asked.double_quant = self.double_quant;
    }
}

/// How it learns.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainerFields {
    /// The peak learning rate, instead of `learning_rate_multiplier`; `auto`: a short range test before the first step
    /// finds it. 2e-4 if left out.
    pub learning_rate: Option<AutoFloat>,
    /// `constant`, `linear`, `cosine`, which is the default, or `cosine_with_restarts`.
    pub schedule: Option<String>,
    /// Falls of `cosine_with_restarts`; 1 if left out.
    pub num_cycles: Option<i64>,
    /// Share of all steps in which the rate rises; 0.03 if left out.
    pub warmup_ratio: Option<f64>,
    /// `adamw`, the default, or `adamw_8bit`, which keeps its moments in 8 bits.
    pub optimizer: Option<String>,
    /// AdamW's decay; 0 if left out.
    pub weight_decay: Option<f64>,
    /// The learning rate of the adapter's `b` factors as a multiple of that of the `a` factors (LoRA+); 1 if left out.
    pub loraplus_lr_ratio: Option<f64>,
    /// Longer gradients are scaled down to it; 1 if left out.
    pub max_grad_norm: Option<f64>,
    /// Noise on the embeddings while training (NEFTune); 0, the default: none.
    pub neftune_noise_alpha: Option<f64>,
    /// Ends the job after so many optimiser steps, if the epochs have not ended by then.
    pub max_steps: Option<i64>,
    /// The longest row in tokens; `over_length` says what becomes of a longer one.
    pub max_length: Option<i64>,
    /// What becomes of a longer row: `error`, the default, fails the job with its line; `truncate` keeps its beginning;
    /// `drop` leaves it out; `split` makes several rows of it.
    pub over_length: Option<String>,
    /// Every token is learnt, not only the answers; `false` if left out.
    pub train_on_prompt: Option<bool>,
    /// Rows that go through the model at once, or `auto`, the default: by the memory that is free. The rows of a step stay
    /// `batch_size` in any case.
    pub micro_batch_size: Option<AutoInt>,
    /// Activations are computed again on the way back instead of being kept; or `auto`, the default: if they do not fit.
    pub gradient_checkpointing: Option<AutoBool>,
    /// Optimiser steps between checkpoints; 20 if left out.
    pub checkpoint_every_steps: Option<i64>,
    /// Optimiser steps between validations; 0, the default: only at the end. Needs a validation file.
    pub eval_every_steps: Option<i64>,
    /// Ends the training after so many validations in a row without a better loss, and keeps the best one's adapter; 0,
    /// the default: never. Needs `eval_every_steps`.
    pub early_stopping_patience: Option<i64>,
    /// By how much a loss must be lower to count as better; 0 if left out.
    pub early_stopping_threshold: Option<f64>,
}

impl TrainerFields {
    pub(super) fn lay_into(&self, asked: &mut Requested) {
        asked.learning_rate = self.learning_rate.and_then(|rate| rate.0);
        asked.learning_rate_auto = self.learning_rate == Some(AutoFloat(None));
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

    /// No field is lost on the way: each one, given a value that is not its default, changes the spec at its own name.
    #[test]
    fn every_field_reaches_the_spec_under_its_own_name() {
        let plain = serde_json::to_value(spec(json!({}))).unwrap();
        let trainer = json!({"learning_rate": 0.001, "schedule": "linear", "warmup_ratio": 0.5, "optimizer": "adamw_8bit",
            "weight_decay": 0.1, "loraplus_lr_ratio": 16.0, "max_grad_norm": 0.5, "neftune_noise_alpha": 5.0,
            "max_steps": 7, "max_length": 100, "over_length": "split", "train_on_prompt": true, "micro_batch_size": 2,
            "gradient_checkpointing": false, "checkpoint_every_steps": 3, "eval_every_steps": 4});
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
