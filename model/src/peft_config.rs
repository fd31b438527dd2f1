//! `adapter_config.json`, as PEFT writes and reads it.

use std::collections::BTreeMap;

use attune_domain::{architecture::PROJECTIONS, spec::AdapterSpec};
use serde::{Deserialize, Serialize};

use crate::{adapter::Provenance, error::ModelError};

/// `adapter_config.json`. What Attune does not run is read only to be refused.
#[derive(Serialize, Deserialize)]
pub(crate) struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Targets,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    layers_to_transform: Option<serde_json::Value>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, serde_json::Value>,
}

/// PEFT writes a list; the shorthand `all-linear` is kept as it was typed.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Targets {
    List(Vec<String>),
    Word(String),
}

fn none() -> String {
    "none".into()
}

impl PeftConfig {
    pub(crate) fn of(spec: &AdapterSpec, provenance: &Provenance) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(provenance.base_model.clone()),
            r: spec.rank,
            lora_alpha: spec.lora_alpha,
            lora_dropout: spec.lora_dropout,
            target_modules: Targets::List(spec.target_modules.clone()),
            bias: none(),
            fan_in_fan_out: false,
            use_dora: spec.use_dora,
            use_rslora: spec.use_rslora,
            inference_mode: true,
            modules_to_save: None,
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }

    pub(crate) fn spec(self) -> Result<AdapterSpec, ModelError> {
        let empty = |list: Option<&[String]>| list.is_none_or(<[String]>::is_empty);
        let wrong = [
            ("peft_type", self.peft_type != "LORA", self.peft_type.clone(), "LORA"),
            ("bias", self.bias != "none", self.bias.clone(), "none"),
            ("fan_in_fan_out", self.fan_in_fan_out, "true".into(), "false"),
            ("modules_to_save", !empty(self.modules_to_save.as_deref()), "a list".into(), "null"),
            ("layers_to_transform", self.layers_to_transform.is_some_and(|v| !v.is_null()), "a list".into(), "null"),
            ("rank_pattern", !self.rank_pattern.is_empty(), "a map".into(), "empty"),
            ("alpha_pattern", !self.alpha_pattern.is_empty(), "a map".into(), "empty"),
        ];
        if let Some((field, _, given, allowed)) = wrong.into_iter().find(|(_, is_wrong, ..)| *is_wrong) {
            return Err(ModelError::AdapterConfig { field, given, allowed });
        }
        let named = match self.target_modules {
            Targets::List(list) => list,
            Targets::Word(word) if word == "all-linear" => PROJECTIONS.map(str::to_owned).to_vec(),
            Targets::Word(word) => vec![word],
        };
        // In the order of a block, whatever the file's: two folders with the same numbers are then the same adapter.
        let mut target_modules: Vec<String> =
            PROJECTIONS.iter().filter(|name| named.iter().any(|n| n == *name)).map(ToString::to_string).collect();
        target_modules.extend(named.into_iter().filter(|name| !PROJECTIONS.contains(&name.as_str())));
        Ok(AdapterSpec {
            rank: self.r,
            lora_alpha: self.lora_alpha,
            target_modules,
            lora_dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
        })
    }
}
