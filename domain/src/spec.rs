//! The specification of a training job, and its validation.
//!
//! `api` reads its request body into a [`Requested`](crate::spec::Requested); `TrainSpec::check` (in `check.rs`) turns
//! that into values, or into a [`BadField`](crate::bad_field::BadField) that names the field, the value and the allowed
//! values. Each group of fields has a struct of requested values in `request.rs`, and a file with the struct of checked
//! values and the only definition of the defaults and allowed ranges. The API returns the checked structs. All later
//! code uses a `TrainSpec` and applies no defaults of its own.

mod adapter;
mod auto;
mod check;
mod choices;
mod continuing;
mod hyperparameters;
mod method;
mod quantization;
mod range;
pub mod request;
mod trainer;

use serde::{Deserialize, Serialize};

pub use adapter::AdapterSpec;
pub use auto::{Auto, AutoBool, AutoFloat, AutoInt, AutoValue};
pub use choices::{Optimizer, OverLength, Schedule};
pub use hyperparameters::{BASE_LEARNING_RATE, HyperparametersSpec};
pub use method::{Method, WrongFormat};
pub use quantization::Quantization;
pub use request::Requested;
pub use trainer::TrainerSpec;

use crate::template_kwargs::TemplateKwargs;

/// A validated training specification with all defaults filled in. Part of the contract with trainers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The seed of the factors' initialization and of the order of rows.
    pub seed: u64,
    /// OpenAI's hyperparameters.
    #[serde(flatten, with = "hyperparameters::StoredHyperparameters")]
    pub hyperparameters: HyperparametersSpec,
    /// The adapter's LoRA configuration.
    pub adapter: AdapterSpec,
    /// The quantization of the base during training.
    pub quantization: Quantization,
    /// The training method.
    #[serde(default)]
    pub method: Method,
    /// The trainer's settings.
    #[serde(flatten)]
    pub trainer: TrainerSpec,
    /// The variables that the chat template receives with each row.
    #[serde(default, skip_serializing_if = "TemplateKwargs::is_empty")]
    pub chat_template_kwargs: TemplateKwargs,
}

impl TrainSpec {
    /// Returns the number of optimizer steps of the whole job over `rows` rows; the last step of an epoch may have
    /// fewer rows.
    #[must_use]
    pub fn total_steps(&self, rows: u64) -> u64 {
        let HyperparametersSpec { n_epochs, batch_size, .. } = self.hyperparameters;
        let all = rows.div_ceil(u64::from(batch_size)) * u64::from(n_epochs);
        self.trainer.max_steps.map_or(all, |most| most.min(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// A job's row as this version and earlier ones write it.
    const STORED: &str = r#"{"n_epochs":3,"max_steps":null,"effective_batch_size":5,"learning_rate":0.0001,
        "learning_rate_multiplier":0.5,"schedule":"cosine","warmup_ratio":0.03,"weight_decay":0.0,
        "max_grad_norm":1.0,"seed":42,"max_length":2048,"checkpoint_every_steps":20,"eval_every_steps":0,
        "adapter":{"rank":16,"lora_alpha":32.0,"target_modules":["q_proj","v_proj"],"lora_dropout":0.0,
        "use_rslora":false,"use_dora":false},"quantization":{"type":"nf4","double_quant":true},
        "method":"supervised","train_on_prompt":false,"over_length":"error","optimizer":"adamw_8bit",
        "loraplus_lr_ratio":1.0,"neftune_noise_alpha":0.0,"num_cycles":1,"learning_rate_auto":false,
        "early_stopping_patience":0,"early_stopping_threshold":0.0,"micro_batch_size":null,
        "gradient_checkpointing":true,"chat_template_kwargs":{"enable_thinking":false}}"#;

    #[test]
    fn a_stored_spec_is_read_and_written_with_the_same_fields() {
        let stored: Value = serde_json::from_str(STORED).unwrap();
        let spec: TrainSpec = serde_json::from_str(STORED).unwrap();
        assert_eq!(spec, serde_json::from_value::<TrainSpec>(stored.clone()).unwrap());
        assert_eq!(serde_json::to_value(&spec).unwrap(), stored);
        assert_eq!(serde_json::from_str::<TrainSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        assert_eq!((spec.seed, spec.hyperparameters.batch_size, spec.adapter.rank), (42, 5, 16));
        assert_eq!((spec.trainer.micro_batch_size, spec.trainer.gradient_checkpointing), (None, Some(true)));
        assert_eq!((spec.trainer.learning_rate, spec.trainer.optimizer), (1e-4, Optimizer::Adamw8bit));
    }

    #[test]
    fn a_spec_without_the_newer_fields_has_their_defaults() {
        let mut stored: Value = serde_json::from_str(STORED).unwrap();
        let fields = stored.as_object_mut().unwrap();
        for newer in [
            "method",
            "train_on_prompt",
            "over_length",
            "optimizer",
            "loraplus_lr_ratio",
            "neftune_noise_alpha",
            "num_cycles",
            "learning_rate_auto",
            "early_stopping_patience",
            "early_stopping_threshold",
            "micro_batch_size",
            "gradient_checkpointing",
            "chat_template_kwargs",
        ] {
            fields.remove(newer).unwrap();
        }
        let adapter = fields["adapter"].as_object_mut().unwrap();
        for newer in ["lora_dropout", "use_rslora", "use_dora"] {
            adapter.remove(newer).unwrap();
        }
        let spec: TrainSpec = serde_json::from_value(stored).unwrap();
        let whole: TrainSpec = serde_json::from_str(STORED).unwrap();
        let trainer = TrainerSpec { optimizer: Optimizer::Adamw, gradient_checkpointing: None, ..whole.trainer };
        assert_eq!(spec, TrainSpec { trainer, chat_template_kwargs: TemplateKwargs::default(), ..whole });
    }
}
