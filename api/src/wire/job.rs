//! The request body for creating a job: OpenAI's fields, and Attune's `adapter`, `quantization`, `trainer` and
//! `continue_from`.

use std::collections::BTreeMap;

use attune_domain::spec::{
    Requested,
    request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
};
use attune_inference::wire::metadata;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    method::Method,
    money::{ComputeChange, ComputeFields},
};
use crate::{error::ApiError, http::path_id::truncated};

/// The maximum length of a suffix, in characters. Source: OpenAI's API reference.
pub const MAX_SUFFIX_CHARS: usize = 64;

/// The request body for creating a fine-tuning job.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// The name of a base model, or of a fine-tuned model to train further: the job uses its base model and continues
    /// from its adapter.
    #[schema(example = "smollm2-135m-instruct")]
    pub model: String,
    /// The ID of the training file.
    #[schema(example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub training_file: String,
    /// The ID of the validation file, whose loss is measured during training and at the end.
    pub validation_file: Option<String>,
    /// The older location of `method.supervised.hyperparameters`.
    pub hyperparameters: Option<Hyperparameters>,
    /// The training method.
    pub method: Option<Method>,
    /// A part of the fine-tuned model's name: lower case, with `-` for each run of characters other than letters,
    /// digits, `.` and `_`.
    #[schema(max_length = 64)]
    pub suffix: Option<String>,
    /// The seed of the adapter's initial weights and of the order of rows. Defaults to 42.
    pub seed: Option<i64>,
    /// Up to 16 key-value pairs: keys of up to 64 and values of up to 512 characters.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not supported: must be omitted or empty.
    #[schema(value_type = Option<Vec<Object>>)]
    pub integrations: Option<Vec<Value>>,
    /// The adapter's LoRA configuration. Attune extension.
    pub adapter: Option<AdapterFields>,
    /// The quantization of the base model while training. Attune extension.
    pub quantization: Option<QuantizationFields>,
    /// The trainer's settings. Attune extension.
    pub trainer: Option<TrainerFields>,
    /// The adapter to start from instead of a new one: its ID or its model name. It must have the same base model;
    /// rank, alpha, target modules, rsLoRA and DoRA default to its values. Attune extension.
    #[schema(example = "adapter_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
    pub continue_from: Option<String>,
    /// Limits on the job's cost and machine, and its place in the queue. Attune extension.
    pub compute: Option<ComputeFields>,
    /// Variables of the base model's chat template for each row, such as `enable_thinking`: at most 16, each a string,
    /// a number, a boolean, null or a list of those. Attune extension.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// The request body for changing a job.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobChange {
    /// Limits on the job's cost.
    pub compute: ComputeChange,
}

impl NewJob {
    /// Checks the fields and returns the request for further checks in `domain::spec`.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for the first invalid or unsupported field.
    pub fn requested(&self) -> Result<Requested, ApiError> {
        if self.integrations.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::unsupported("integrations", "Integrations are not supported; leave the field out."));
        }
        self.method.as_ref().map_or(Ok(()), Method::check)?;
        self.check_labels()?;
        if let Some(compute) = &self.compute {
            compute.checked()?;
        }
        Ok(Requested {
            seed: self.seed,
            method: self.method.as_ref().map(|method| method.r#type.clone()),
            hyperparameters: self.asked_hyperparameters()?,
            adapter: self.adapter.clone().unwrap_or_default(),
            quantization: self.quantization.clone().unwrap_or_default(),
            trainer: self.trainer.clone().unwrap_or_default(),
            chat_template_kwargs: self.chat_template_kwargs.clone(),
        })
    }

    fn check_labels(&self) -> Result<(), ApiError> {
        if let Some(given) = &self.suffix
            && (given.chars().count() > MAX_SUFFIX_CHARS || normalised(given).is_empty())
        {
            let message = format!(
                "Invalid 'suffix': '{}'; it must be 1 to {MAX_SUFFIX_CHARS} characters, with a letter or digit.",
                truncated(given)
            );
            return Err(ApiError::invalid("suffix", message));
        }
        Ok(self.metadata.as_ref().map_or(Ok(()), metadata::check)?)
    }

    /// Returns the suffix in the form that the model's name contains.
    pub fn suffix(&self) -> Option<String> {
        self.suffix.as_deref().map(normalised)
    }

    /// Returns a note if the suffix was normalized.
    pub fn suffix_note(&self) -> Option<String> {
        let (given, suffix) = (self.suffix.as_deref()?, self.suffix()?);
        (given != suffix).then(|| format!("The suffix '{given}' appears in the model's name as '{suffix}'"))
    }

    /// Merges the two locations of the hyperparameters, which must not differ.
    fn asked_hyperparameters(&self) -> Result<Hyperparameters, ApiError> {
        let older = self.hyperparameters;
        let newer = self.method.as_ref().and_then(Method::settings).and_then(|settings| settings.hyperparameters);
        match (older, newer) {
            (Some(a), Some(b)) if a != b => Err(ApiError::invalid(
                "hyperparameters",
                "'hyperparameters' differs from those in 'method'; use only the latter.",
            )),
            (older, newer) => Ok(newer.or(older).unwrap_or_default()),
        }
    }
}

/// Normalizes a suffix as OpenAI does in model names: in lower case, with `-` for other characters.
fn normalised(suffix: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let words = suffix.split(|c| !plain(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::{Auto, TrainSpec};
    use serde_json::json;

    use super::*;
    use crate::http::json_body::from_value;

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
            (json!({"method": {"type": "no_such_method"}}), "method.type"),
            (json!({"method": {"type": "supervised", "dpo": {}}}), "method.dpo"),
            (json!({"method": {"type": "supervised", "continued_pretraining": {}}}), "method.continued_pretraining"),
            (json!({"method": {"type": "continued_pretraining", "supervised": {}}}), "method.supervised"),
            (
                json!({"method": {"type": "continued_pretraining",
                    "continued_pretraining": {"hyperparameters": {"epochs": 1}}}}),
                "method.continued_pretraining.hyperparameters.epochs",
            ),
            (json!({"trainer": {"learning_rate": "fast"}}), "trainer.learning_rate"),
            (json!({"trainer": {"micro_batch_size": 1.5}}), "trainer.micro_batch_size"),
            (json!({"trainer": {"gradient_checkpointing": "on"}}), "trainer.gradient_checkpointing"),
            (json!({"trainer": {"optimizer": 8}}), "trainer.optimizer"),
            (json!({"adapter": {"dropout": 0.1}}), "adapter.dropout"),
            (json!({"continue_from": 7}), "continue_from"),
            (json!({"method": {}}), "method.type"),
            (
                json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1.5}}}}),
                "method.supervised.hyperparameters.n_epochs",
            ),
            (json!({"hyperparameters": {"batch_size": "big"}}), "hyperparameters.batch_size"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"compute": {"max_price_usd": 0}}), "compute.max_price_usd"),
            (json!({"compute": {"max_eur": 1}}), "compute.max_eur"),
            (json!({"compute": {"priority": "urgent"}}), "compute.priority"),
            (json!({"compute": {"preemptible": "yes"}}), "compute.preemptible"),
            (json!({"suffix": "!?"}), "suffix"),
            (json!({"suffix": ""}), "suffix"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"metadata": {"a": "x".repeat(513)}}), "metadata"),
            (json!({"epochs": 3}), "epochs"),
            (
                json!({"hyperparameters": {"n_epochs": 1},
                    "method": {"type": "supervised", "supervised": {"hyperparameters": {}}}}),
                "hyperparameters",
            ),
        ] {
            assert_eq!(refused(more.clone()).0.as_deref(), Some(param), "{more}");
        }
    }

    fn suffix(given: &str) -> Result<(String, Option<String>), ApiError> {
        let job: NewJob = from_value(json!({"model": "m", "training_file": "file-1", "suffix": given}))?;
        job.requested()?;
        Ok((job.suffix().unwrap(), job.suffix_note()))
    }

    #[test]
    fn a_suffix_is_written_as_openai_writes_it() {
        for (given, name) in [
            ("records", "records"),
            ("records-2.1_b", "records-2.1_b"),
            ("My Model", "my-model"),
            (" Größe: XL! ", "gr-e-xl"),
            ("a:b/c", "a-b-c"),
        ] {
            let (suffix, note) = suffix(given).unwrap();
            assert_eq!(suffix, name);
            assert_eq!(note.is_some(), given != name, "{note:?}");
        }
        let note = suffix("My Model").unwrap().1.unwrap();
        assert_eq!(note, "The suffix 'My Model' appears in the model's name as 'my-model'");
    }

    #[test]
    fn limit_a_suffix_has_at_most_64_characters() {
        assert!(suffix(&"é ".repeat(32).replace(' ', "a")).is_ok());
        assert!(suffix(&"a".repeat(MAX_SUFFIX_CHARS)).is_ok());
        let refused = suffix(&"a".repeat(MAX_SUFFIX_CHARS + 1)).unwrap_err().body().error;
        assert_eq!(refused.param.as_deref(), Some("suffix"));
    }

    #[test]
    fn both_places_of_the_hyperparameters_are_read() {
        for body in [
            json!({"hyperparameters": {"n_epochs": 2}}),
            json!({"method": {"type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}}),
            json!({"method": {"type": "continued_pretraining",
                "continued_pretraining": {"hyperparameters": {"n_epochs": 2}}}}),
        ] {
            let mut whole = json!({"model": "m", "training_file": "file-1"});
            whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let job: NewJob = from_value(whole).unwrap();
            assert_eq!(job.requested().unwrap().hyperparameters.n_epochs, Auto(Some(2)));
        }
    }

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
        assert_eq!(restarts.trainer.num_cycles, 3);
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
        assert!(found.trainer.learning_rate_auto && !auto.trainer.learning_rate_auto);
        assert!(!spec(json!({"trainer": {"learning_rate": null}})).trainer.learning_rate_auto);
    }
}
