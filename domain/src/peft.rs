//! A LoRA adapter in PEFT's format: the supported values of its `adapter_config.json`, and its tensors. The import,
//! training that starts from an adapter, and serving share this code.
//!
//! Any field that Attune does not support is refused by name: running an adapter without a feature that it requires
//! would produce different outputs. Source of the fields: `LoraConfig` in PEFT's `tuners/lora/config.py`.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value, json};

use crate::{
    architecture::{Architecture, PROJECTIONS},
    manifest,
    spec::AdapterSpec,
    weights::projection_path,
};

/// The name of an adapter's config file, next to [`TENSORS`].
pub const CONFIG: &str = "adapter_config.json";
/// The name of an adapter's weights file, next to [`CONFIG`].
pub const TENSORS: &str = "adapter_model.safetensors";
/// The names of the other files that an adapter's folder may contain. None of them changes the adapter's weights.
pub const OTHER_FILES: [&str; 7] = [
    "README.md",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    manifest::FILE,
];

/// The maximum rank, the same as that of `adapter.rank`.
const MOST_RANK: u64 = 256;

/// Fields that do not change the output, whatever their value.
const IGNORED_FIELDS: [&str; 6] =
    ["revision", "auto_mapping", "inference_mode", "peft_version", "megatron_core", "qalora_group_size"];

/// The error for a field of `adapter_config.json` with an unsupported value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{CONFIG}: {field}: {given} is not supported; allowed: {allowed}")]
pub struct Refusal {
    /// The field's name.
    pub field: String,
    /// The field's value.
    pub given: String,
    /// The allowed values.
    pub allowed: String,
}

impl Refusal {
    /// Returns the error for `field`.
    pub fn new(field: &str, given: impl fmt::Display, allowed: &str) -> Self {
        Self { field: field.into(), given: given.to_string(), allowed: allowed.into() }
    }
}

/// The contents of an `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// The adapter's hyperparameters.
    pub spec: AdapterSpec,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
}

/// Returns the `adapter_config.json` of an adapter over `base_model`.
#[must_use]
pub fn write(spec: &AdapterSpec, base_model: &str) -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": spec.lora_dropout,
        "target_modules": spec.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_dora": spec.use_dora,
        "use_rslora": spec.use_rslora,
        "inference_mode": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

/// Parses an `adapter_config.json`.
///
/// # Errors
/// All refused fields, in the order of the checks below and then of the file.
pub fn read(fields: Map<String, Value>) -> Result<PeftConfig, Vec<Refusal>> {
    let mut reader = Reader { fields, refused: Vec::new() };
    reader.must_be("peft_type", "LORA", |v| v == "LORA");
    reader.may_be("task_type", "CAUSAL_LM", |v| v == "CAUSAL_LM");
    reader.may_be("bias", "none", |v| v == "none");
    // The other initializations change the base's weights too, so the factors alone would not be the adapter.
    reader.may_be("init_lora_weights", "true, false, gaussian, orthogonal", |v| {
        v.is_boolean() || v == "gaussian" || v == "orthogonal"
    });
    let rank = reader.rank();
    let lora_alpha = reader.number("lora_alpha", "a number above 0", |n| n.is_finite() && n > 0.0).unwrap_or(1.0);
    let use_rslora = reader.truth("use_rslora");
    let use_dora = reader.truth("use_dora");
    let lora_dropout = reader.dropout();
    let target_modules = reader.targets();
    let base_model = reader.base();
    let refused = reader.done();
    if !refused.is_empty() {
        return Err(refused);
    }
    let spec = AdapterSpec { rank, lora_alpha, target_modules, lora_dropout, use_rslora, use_dora };
    Ok(PeftConfig { spec, base_model })
}

struct Reader {
    fields: Map<String, Value>,
    refused: Vec<Refusal>,
}

impl Reader {
    fn refuse(&mut self, field: &str, given: &Value, allowed: &str) {
        self.refused.push(Refusal::new(field, display_value(given), allowed));
    }

    fn must_be(&mut self, field: &str, allowed: &str, fits: impl Fn(&Value) -> bool) {
        let given = self.fields.shift_remove(field).unwrap_or(Value::Null);
        if !fits(&given) {
            self.refuse(field, &given, allowed);
        }
    }

    fn may_be(&mut self, field: &str, allowed: &str, fits: impl Fn(&Value) -> bool) {
        self.must_be(field, allowed, |given| given.is_null() || fits(given));
    }

    fn rank(&mut self) -> u32 {
        let given = self.fields.shift_remove("r").unwrap_or(Value::Null);
        match given.as_u64().filter(|rank| (1..=MOST_RANK).contains(rank)) {
            Some(rank) => u32::try_from(rank).unwrap_or(1),
            None => {
                self.refuse("r", &given, "a whole number, 1 or more and at most 256");
                1
            }
        }
    }

    fn number(&mut self, field: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Option<f64> {
        let given = self.fields.shift_remove(field).unwrap_or(Value::Null);
        let number = given.as_f64().filter(|n| fits(*n));
        if number.is_none() {
            self.refuse(field, &given, allowed);
        }
        number
    }

    fn truth(&mut self, field: &str) -> bool {
        let given = self.fields.shift_remove(field).unwrap_or(Value::Bool(false));
        given.as_bool().unwrap_or_else(|| {
            self.refuse(field, &given, "true or false");
            false
        })
    }

    /// Reads the dropout; any value is supported, since dropout is off at inference.
    fn dropout(&mut self) -> f64 {
        self.fields.entry("lora_dropout").or_insert_with(|| json!(0));
        self.number("lora_dropout", "from 0 to below 1", |n| (0.0..1.0).contains(&n)).unwrap_or(0.0)
    }

    /// Returns the modules in the order of a block: two folders with the same weights are then the same adapter.
    fn targets(&mut self) -> Vec<String> {
        const ALLOWED: &str = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
        let given = self.fields.shift_remove("target_modules").unwrap_or(Value::Null);
        let named: Vec<&str> = match &given {
            Value::String(word) if word == "all-linear" => PROJECTIONS.to_vec(),
            Value::String(word) => vec![word],
            Value::Array(list) => list.iter().map(|word| word.as_str().unwrap_or("a non-string")).collect(),
            _ => Vec::new(),
        };
        if named.is_empty() {
            self.refused.push(Refusal::new("target_modules", "none", ALLOWED));
        }
        for other in named.iter().filter(|name| !PROJECTIONS.contains(name)) {
            self.refused.push(Refusal::new("target_modules", other, ALLOWED));
        }
        PROJECTIONS.iter().filter(|name| named.contains(name)).map(ToString::to_string).collect()
    }

    fn base(&mut self) -> Option<String> {
        match self.fields.shift_remove("base_model_name_or_path") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(given) => {
                self.refuse("base_model_name_or_path", &given, "a string");
                None
            }
        }
    }

    /// Refuses each remaining field that is set, and returns all refusals.
    fn done(mut self) -> Vec<Refusal> {
        for (field, given) in std::mem::take(&mut self.fields) {
            let asks_nothing = match &given {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !asks_nothing && !IGNORED_FIELDS.contains(&field.as_str()) {
                self.refuse(&field, &given, "null, false or empty");
            }
        }
        self.refused
    }
}

fn display_value(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.chars().take(80).collect(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            names.join(", ").chars().take(80).collect()
        }
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a map".into(),
        other => other.to_string(),
    }
}

/// Returns every tensor, with its shape, of an adapter with these hyperparameters over a base of this architecture,
/// with PEFT's names.
#[must_use]
pub fn expected(architecture: &Architecture, spec: &AdapterSpec) -> BTreeMap<String, Vec<u64>> {
    let rank = u64::from(spec.rank);
    let mut all = BTreeMap::new();
    for layer in 0..architecture.num_hidden_layers {
        for projection in &spec.target_modules {
            let Some((outs, ins)) = architecture.projection(projection) else { continue };
            let path = format!("base_model.model.{}", projection_path(layer, projection));
            all.insert(format!("{path}.lora_A.weight"), vec![rank, ins]);
            all.insert(format!("{path}.lora_B.weight"), vec![outs, rank]);
            if spec.use_dora {
                all.insert(format!("{path}.lora_magnitude_vector"), vec![outs]);
            }
        }
    }
    all
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<u64>,
    /// The data type, in safetensors' notation: `F32`.
    pub dtype: String,
}

/// Returns the differences between a file's tensors and the expected ones: a message each, without its full stop.
#[must_use]
pub fn mismatches(mut expected: BTreeMap<String, Vec<u64>>, found: &[Found]) -> Vec<String> {
    let mut reasons = Vec::new();
    for tensor in found {
        let Found { name, shape, dtype } = tensor;
        match expected.remove(name) {
            None => reasons.push(format!("{TENSORS}: '{name}' is not a tensor of this adapter over this base")),
            Some(want) if want != *shape => {
                reasons.push(format!("{TENSORS}: '{name}' has the shape {shape:?} instead of {want:?}"));
            }
            Some(_) if !matches!(dtype.as_str(), "F32" | "F16" | "BF16") => {
                reasons.push(format!("{TENSORS}: '{name}' is stored as {dtype}; allowed: F32, F16, BF16"));
            }
            Some(_) => {}
        }
    }
    reasons.extend(expected.into_keys().map(|name| format!("{TENSORS}: the tensor '{name}' is missing")));
    reasons
}

/// Returns whether two names refer to the same base by their last part, ignoring case: `HuggingFaceTB/SmolLM2-135M` and
/// `smollm2-135m` do.
#[must_use]
pub fn same_base_name(theirs: &str, ours: &str) -> bool {
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_ascii_lowercase();
    last(theirs) == last(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(field: &str, value: Value) -> Map<String, Value> {
        let spec = AdapterSpec::lora(4, 8.0, &["q_proj", "v_proj"]);
        let mut config = write(&spec, "tiny");
        config[field] = value;
        config.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut spec = AdapterSpec::lora(4, 8.0, &["q_proj", "v_proj"]);
        spec.use_rslora = true;
        let read = read(write(&spec, "tiny").as_object().unwrap().clone()).unwrap();
        assert_eq!(read, PeftConfig { spec, base_model: Some("tiny".into()) });
    }

    #[test]
    fn what_would_be_another_adapter_is_refused_by_field() {
        for (field, value) in [
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_CLS")),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa")),
            ("r", json!(0)),
            ("r", json!(257)),
            ("r", json!("8")),
            ("lora_alpha", json!(null)),
            ("lora_alpha", json!(-1)),
            ("lora_dropout", json!(1.0)),
            ("use_dora", json!("yes")),
            ("target_modules", json!([])),
            ("target_modules", json!(["q_proj", "lm_head"])),
            ("target_modules", json!("q_proj|v_proj")),
            ("fan_in_fan_out", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("layers_to_transform", json!([0])),
            ("rank_pattern", json!({"q_proj": 8})),
            ("trainable_token_indices", json!([1, 2])),
            ("lora_bias", json!(true)),
            ("never_heard_of", json!(7)),
            ("base_model_name_or_path", json!(7)),
        ] {
            let refused = read(config(field, value.clone())).unwrap_err();
            assert!(refused.iter().all(|r| r.field == field) && refused.len() == 1, "{field} {value}: {refused:?}");
        }
    }

    #[test]
    fn every_refusal_is_reported_at_once() {
        let mut fields = config("r", json!(0));
        fields.insert("bias".into(), json!("all"));
        fields.insert("rank_pattern".into(), json!({"q_proj": 8}));
        let refused = read(fields).unwrap_err();
        assert_eq!(refused.iter().map(|r| r.field.as_str()).collect::<Vec<_>>(), ["bias", "r", "rank_pattern"]);
        let text = "adapter_config.json: bias: all is not supported; allowed: none";
        assert_eq!(refused[0].to_string(), text);
    }

    #[test]
    fn a_base_is_known_by_the_last_part_of_its_name() {
        assert!(same_base_name("HuggingFaceTB/SmolLM2-135M", "smollm2-135m"));
        assert!(same_base_name("/models/tiny/", "tiny"));
        assert!(!same_base_name("tiny-2", "tiny") && !same_base_name("", "tiny"));
    }
}
