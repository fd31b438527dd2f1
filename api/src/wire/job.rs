//! A job as it is asked for: OpenAI's body, and Attune's own `adapter`, `quantization` and `trainer` beside it.

use std::collections::BTreeMap;

use attune_domain::spec::Requested;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::auto::{AutoFloat, AutoInt};
use crate::error::ApiError;

/// A fine-tuning job to be made.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// A base model's name.
    #[schema(example = "smollm2-135m-instruct")]
    pub model: String,
    /// The id of a file.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub training_file: String,
    /// The id of a file whose loss is measured on the way and at the end.
    pub validation_file: Option<String>,
    /// The older place of `method.supervised.hyperparameters`.
    pub hyperparameters: Option<Hyperparameters>,
    /// How to train.
    pub method: Option<Method>,
    /// Stands in the tuned model's name.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    pub suffix: Option<String>,
    /// Seeds the adapter's first weights and the order of rows; 42 if left out.
    pub seed: Option<i64>,
    /// At most 16 pairs, keys up to 64 and values up to 512 characters.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not supported; must be left out or empty.
    #[schema(value_type = Option<Vec<Object>>)]
    pub integrations: Option<Vec<Value>>,
    /// The adapter's shape. Attune's own.
    pub adapter: Option<AdapterFields>,
    /// How the base is held while training. Attune's own.
    pub quantization: Option<QuantizationFields>,
    /// The optimiser. Attune's own.
    pub trainer: Option<TrainerFields>,
}

/// OpenAI's three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// Passes over the training rows; `auto`: 3.
    pub n_epochs: AutoInt,
    /// Rows per optimiser step; `auto`: about one row in 64, from 4 to 32.
    pub batch_size: AutoInt,
    /// The learning rate as a multiple of 2e-4; `auto`: 1.
    pub learning_rate_multiplier: AutoFloat,
}

/// How to train.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Only `supervised` is supported.
    #[schema(example = "supervised")]
    pub r#type: String,
    /// Its settings.
    pub supervised: Option<Supervised>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub dpo: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub reinforcement: Option<Value>,
}

/// Settings of supervised fine-tuning.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Supervised {
    /// OpenAI's three.
    pub hyperparameters: Option<Hyperparameters>,
}

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
}

/// How the base is held while training.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizationFields {
    /// `nf4`, the default, or `none`.
    pub r#type: Option<String>,
    /// The scales of `nf4` are quantised too; `true` if left out.
    pub double_quant: Option<bool>,
}

/// The optimiser.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainerFields {
    /// The peak learning rate, instead of `learning_rate_multiplier`.
    pub learning_rate: Option<f64>,
    /// `constant`, `linear` or `cosine`, which is the default.
    pub schedule: Option<String>,
    /// Share of all steps in which the rate rises; 0.03 if left out.
    pub warmup_ratio: Option<f64>,
    /// AdamW's decay; 0 if left out.
    pub weight_decay: Option<f64>,
    /// Longer gradients are scaled down to it; 1 if left out.
    pub max_grad_norm: Option<f64>,
    /// Ends the job after so many optimiser steps, if the epochs have not ended by then.
    pub max_steps: Option<i64>,
    /// The longest row in tokens; a longer one fails the job with its line.
    pub max_length: Option<i64>,
    /// Optimiser steps between checkpoints; 20 if left out.
    pub checkpoint_every_steps: Option<i64>,
    /// Optimiser steps between validations; 0, the default: only at the end.
    pub eval_every_steps: Option<i64>,
}

impl NewJob {
    /// Refuses what cannot be done and what is written down wrongly, and gives what is to be checked further.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], the first one met.
    pub fn requested(&self) -> Result<Requested, ApiError> {
        self.check_method()?;
        self.check_labels()?;
        let hyper = self.asked_hyperparameters()?;
        let adapter = self.adapter.clone().unwrap_or_default();
        let quantization = self.quantization.clone().unwrap_or_default();
        let trainer = self.trainer.clone().unwrap_or_default();
        Ok(Requested {
            n_epochs: hyper.n_epochs.0,
            max_steps: trainer.max_steps,
            effective_batch_size: hyper.batch_size.0,
            learning_rate: trainer.learning_rate,
            learning_rate_multiplier: hyper.learning_rate_multiplier.0,
            schedule: trainer.schedule,
            warmup_ratio: trainer.warmup_ratio,
            weight_decay: trainer.weight_decay,
            max_grad_norm: trainer.max_grad_norm,
            seed: self.seed,
            max_length: trainer.max_length,
            checkpoint_every_steps: trainer.checkpoint_every_steps,
            eval_every_steps: trainer.eval_every_steps,
            rank: adapter.rank,
            lora_alpha: adapter.lora_alpha,
            target_modules: adapter.target_modules,
            quantization: quantization.r#type,
            double_quant: quantization.double_quant,
            ..Requested::default()
        })
    }

    fn check_method(&self) -> Result<(), ApiError> {
        if self.integrations.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::unsupported("integrations", "Integrations are not supported; leave the field out."));
        }
        let Some(method) = &self.method else { return Ok(()) };
        if method.r#type != "supervised" {
            let message = format!("Invalid 'method.type': '{}'; only 'supervised' is supported.", method.r#type);
            return Err(ApiError::unsupported("method.type", message));
        }
        for (name, given) in [("method.dpo", &method.dpo), ("method.reinforcement", &method.reinforcement)] {
            if given.is_some() {
                return Err(ApiError::unsupported(name, format!("'{name}' does not go with the type 'supervised'.")));
            }
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<(), ApiError> {
        if let Some(suffix) = &self.suffix {
            let plain = suffix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !plain || suffix.is_empty() || suffix.len() > 64 {
                let message =
                    format!("Invalid 'suffix': '{suffix}'; it must be 1 to 64 letters, digits, '.', '_' or '-'.");
                return Err(ApiError::invalid("suffix", message));
            }
        }
        let Some(metadata) = &self.metadata else { return Ok(()) };
        if metadata.len() > 16 {
            return Err(ApiError::invalid("metadata", "Invalid 'metadata': at most 16 pairs are kept."));
        }
        for (key, value) in metadata {
            if key.is_empty()
                || key.chars().count() > 64
                || value.chars().count() > 512
                || has_nul(key)
                || has_nul(value)
            {
                let message = "Invalid 'metadata': a key has 1 to 64 characters, a value at most 512, and none is NUL.";
                return Err(ApiError::invalid("metadata", message));
            }
        }
        Ok(())
    }

    /// The same field must not be given in both places.
    fn asked_hyperparameters(&self) -> Result<Hyperparameters, ApiError> {
        let older = self.hyperparameters;
        let newer = self.method.as_ref().and_then(|m| m.supervised).and_then(|s| s.hyperparameters);
        match (older, newer) {
            (Some(a), Some(b)) if a != b => Err(ApiError::invalid(
                "hyperparameters",
                "'hyperparameters' differs from 'method.supervised.hyperparameters'; give the latter alone.",
            )),
            (older, newer) => Ok(newer.or(older).unwrap_or_default()),
        }
    }

    /// What `method.supervised.hyperparameters` shows later: as it came.
    pub fn as_it_came(&self) -> Value {
        json!({ "hyperparameters": self.asked_hyperparameters().unwrap_or_default() })
    }
}

/// Postgres keeps no NUL in its texts.
fn has_nul(text: &str) -> bool {
    text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::from_value;

    fn refused(more: Value) -> (Option<String>, Option<&'static str>) {
        let mut body = json!({"model": "m", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = from_value::<NewJob>(body).and_then(|job| job.requested()).unwrap_err().body().error;
        (error.param, error.code)
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (more, param) in [
            (json!({"adapter": {"rnak": 8}}), "adapter.rnak"),
            (json!({"adapter": {"rank": "8"}}), "adapter.rank"),
            (json!({"adapter": {"target_modules": "all-linear"}}), "adapter.target_modules"),
            (json!({"method": {"type": "dpo"}}), "method.type"),
            (json!({"method": {"type": "supervised", "dpo": {}}}), "method.dpo"),
            (json!({"method": {}}), "method.type"),
            (
                json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1.5}}}}),
                "method.supervised.hyperparameters.n_epochs",
            ),
            (json!({"hyperparameters": {"batch_size": "big"}}), "hyperparameters.batch_size"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"suffix": "a:b"}), "suffix"),
            (json!({"suffix": ""}), "suffix"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"metadata": {"a": "x".repeat(513)}}), "metadata"),
            (json!({"epochs": 3}), "epochs"),
            (
                json!({"hyperparameters": {"n_epochs": 1}, "method": {"type": "supervised", "supervised": {"hyperparameters": {}}}}),
                "hyperparameters",
            ),
        ] {
            assert_eq!(refused(more.clone()).0.as_deref(), Some(param), "{more}");
        }
    }

    #[test]
    fn both_places_of_the_hyperparameters_are_read() {
        for body in [
            json!({"hyperparameters": {"n_epochs": 2}}),
            json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}}),
        ] {
            let mut whole = json!({"model": "m", "training_file": "file-1"});
            whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let job: NewJob = from_value(whole).unwrap();
            assert_eq!(job.requested().unwrap().n_epochs, Some(2));
            assert_eq!(job.as_it_came()["hyperparameters"]["batch_size"], "auto");
        }
    }
}
