//! Parses a `config.json` as the configuration class of its family in transformers does: the same keys, the same
//! defaults. This file has what all classes share; each family's file has the rest. A key that changes the computation
//! in a way that Attune does not support is refused by name.

use serde_json::{Map, Value};

use super::{
    Architecture, ArchitectureError,
    bounds::{
        MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN_SIZE, MAX_INTERMEDIATE_SIZE, MAX_LAYERS, MAX_POSITIONS, MAX_RMS_NORM_EPS,
        MAX_VOCAB_SIZE, MIN_RMS_NORM_EPS,
    },
    class::Class,
    keys::{Keys, shown},
    llama, mistral, qwen2, qwen3, rope,
};
use crate::text::text_file::model_document;

/// The classes of all families.
static CLASSES: [Class; 4] = [llama::CLASS, mistral::CLASS, qwen2::CLASS, qwen3::CLASS];

const DEFAULT_HIDDEN_SIZE: u64 = 4096;
const DEFAULT_LAYERS: u64 = 32;
const DEFAULT_HEADS: u64 = 32;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;

/// Parses the file.
pub(super) fn read(text: &[u8]) -> Result<Architecture, ArchitectureError> {
    let text = model_document(text).map_err(ArchitectureError::Unreadable)?;
    let map: Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| ArchitectureError::Unreadable(e.to_string()))?;
    let keys = Keys { path: "", map: &map };
    let class = class(keys)?;
    refuse_unsupported(keys, class)?;
    let default = &class.defaults;
    let size = |key, most, default: u64| Ok::<_, ArchitectureError>(keys.whole(key, 1..=most)?.unwrap_or(default));
    let hidden_size = size("hidden_size", MAX_HIDDEN_SIZE, DEFAULT_HIDDEN_SIZE)?;
    let num_attention_heads = size("num_attention_heads", MAX_HEADS, DEFAULT_HEADS)?;
    let key_heads = default.num_key_value_heads.filter(|_| !keys.is_null("num_key_value_heads"));
    let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS, DEFAULT_LAYERS)?;
    let max_position_embeddings = size("max_position_embeddings", MAX_POSITIONS, default.max_position_embeddings)?;
    let (rope_theta, rope_scaling) = rope::read(keys, max_position_embeddings)?;
    let layers = (class.layers)(keys, num_hidden_layers)?;
    let eps = keys.real("rms_norm_eps", MIN_RMS_NORM_EPS..=MAX_RMS_NORM_EPS)?;
    consistent(Architecture {
        family: class.family,
        hidden_size,
        intermediate_size: size("intermediate_size", MAX_INTERMEDIATE_SIZE, default.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: size("num_key_value_heads", MAX_HEADS, key_heads.unwrap_or(num_attention_heads))?,
        head_dim: size("head_dim", MAX_HEAD_DIM, default.head_dim.unwrap_or(hidden_size / num_attention_heads))?,
        vocab_size: size("vocab_size", MAX_VOCAB_SIZE, default.vocab_size)?,
        max_position_embeddings,
        rms_norm_eps: eps.unwrap_or(DEFAULT_RMS_NORM_EPS),
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.truth("tie_word_embeddings")?.unwrap_or(false),
        gguf_blocks: None,
        layers,
    })
}

/// Returns the class that `model_type` names.
fn class(keys: Keys<'_>) -> Result<&'static Class, ArchitectureError> {
    const KEY: &str = "model_type";
    let name = keys.text(KEY)?.ok_or_else(|| ArchitectureError::Missing(KEY.into()))?;
    CLASSES.iter().find(|class| class.model_type == name).ok_or_else(|| {
        let allowed: Vec<&str> = CLASSES.iter().map(|class| class.model_type).collect();
        keys.refuse(KEY, shown(&name.into()), allowed.join(", "))
    })
}

/// Refuses keys with a value other than the only supported one.
fn refuse_unsupported(keys: Keys<'_>, class: &Class) -> Result<(), ArchitectureError> {
    if let Some(given) = keys.get("quantization_config") {
        let method = given.get("quant_method").map_or_else(|| shown(given), shown);
        return Err(keys.refuse("quantization_config", method, "none: import the unquantized model, or a GGUF file"));
    }
    let neutral = |key: &str, allowed: &str, is_neutral: &dyn Fn(&Value) -> bool| match keys.get(key) {
        Some(given) if !is_neutral(given) => Err(keys.refuse(key, shown(given), allowed)),
        _ => Ok(()),
    };
    neutral("hidden_act", "silu", &|given| *given == "silu" || *given == "swish")?;
    neutral("is_causal", "true", &|given| *given == true)?;
    neutral("attention_dropout", "0", &|given| given.as_f64() == Some(0.0))?;
    neutral("per_layer_config", "none", &|given| given.as_object().is_some_and(Map::is_empty))?;
    for (key, allowed) in class.absent_keys {
        neutral(key, allowed, &|given| *given == false)?;
    }
    Ok(())
}

fn consistent(model: Architecture) -> Result<Architecture, ArchitectureError> {
    let refuse = |field: &str, given: u64, allowed: &str| {
        Err(ArchitectureError::Unsupported { field: field.into(), given: given.to_string(), allowed: allowed.into() })
    };
    if !model.num_attention_heads.is_multiple_of(model.num_key_value_heads) {
        return refuse("num_key_value_heads", model.num_key_value_heads, "a divisor of num_attention_heads");
    }
    if model.head_dim == 0 || model.head_dim > MAX_HEAD_DIM || !model.head_dim.is_multiple_of(2) {
        return refuse("head_dim", model.head_dim, &format!("an even number, 2 to {MAX_HEAD_DIM}"));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        bytes::Bytes,
        dataset::file_facts::FileFacts,
        memory::{BatchSplit, ServedModels, Workload, serving, training},
        placement::{Placement, ServedCompute},
        spec::{Quantization, Requested, TrainSpec, request::AdapterFields},
        throughput::{JobFacts, TokenCost},
    };

    /// Parses a small model's config with one key changed.
    fn with(key: &str, value: Value) -> Result<Architecture, String> {
        let mut config = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 100});
        config[key] = value;
        read(config.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    /// Returns the largest supported model.
    fn largest() -> Architecture {
        let config = json!({"model_type": "llama", "hidden_size": MAX_HIDDEN_SIZE,
            "intermediate_size": MAX_INTERMEDIATE_SIZE, "num_hidden_layers": MAX_LAYERS,
            "num_attention_heads": MAX_HEADS, "num_key_value_heads": MAX_HEADS, "head_dim": MAX_HEAD_DIM,
            "vocab_size": MAX_VOCAB_SIZE, "max_position_embeddings": MAX_POSITIONS});
        read(config.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn limit_config_sizes_are_refused_beyond_their_bounds() {
        let bounds = [
            ("hidden_size", MAX_HIDDEN_SIZE),
            ("intermediate_size", MAX_INTERMEDIATE_SIZE),
            ("num_hidden_layers", MAX_LAYERS),
            ("num_attention_heads", MAX_HEADS),
            ("num_key_value_heads", MAX_HEADS),
            ("head_dim", MAX_HEAD_DIM),
            ("vocab_size", MAX_VOCAB_SIZE),
            ("max_position_embeddings", MAX_POSITIONS),
        ];
        for (key, most) in bounds {
            for value in [json!(most + 1), json!(6_000_000_000_u64), json!(1_u64 << 62), json!(u64::MAX), json!(1e300)]
            {
                let allowed =
                    format!("config.json: {key}: {value} is not supported; allowed: a whole number, 1 to {most}");
                assert_eq!(with(key, value).unwrap_err(), allowed);
            }
            for value in [json!(0), json!(-1), json!(1.5), json!("8"), json!(true), json!([2])] {
                let refused = with(key, value.clone()).unwrap_err();
                assert!(refused.starts_with(&format!("config.json: {key}: ")), "{key} {value}: {refused}");
            }
            assert!(largest() != with(key, json!(null)).unwrap(), "null is not given");
        }
        let windowed = |value: Value| {
            let config = json!({"model_type": "mistral", "sliding_window": value});
            read(config.to_string().as_bytes()).map_err(|e| e.to_string())
        };
        assert_eq!(windowed(json!(MAX_POSITIONS)).unwrap().layers.sliding_window, Some(MAX_POSITIONS));
        for value in [json!(0), json!(MAX_POSITIONS + 1), json!(-1)] {
            assert!(windowed(value).unwrap_err().contains("sliding_window"));
        }
    }

    #[test]
    fn limit_config_numbers_that_are_no_sizes_have_bounds_too() {
        for value in [0.0, -1.0, 1e-30, 0.2, 1e300] {
            let refused = with("rms_norm_eps", json!(value)).unwrap_err();
            let allowed = "allowed: a number, 1e-20 to 0.1";
            assert!(refused.starts_with("config.json: rms_norm_eps: ") && refused.ends_with(allowed), "{refused}");
        }
        for text in ["NaN", "1e999", "-Infinity"] {
            let config = format!(r#"{{"model_type": "llama", "rms_norm_eps": {text}}}"#);
            assert!(matches!(read(config.as_bytes()), Err(ArchitectureError::Unreadable(_))), "{text}");
        }
        for eps in [MIN_RMS_NORM_EPS, MAX_RMS_NORM_EPS] {
            assert_eq!(with("rms_norm_eps", json!(eps)).unwrap().rms_norm_eps, eps);
        }
    }

    /// The tests run with overflow checks, so a product that overflows fails here.
    #[test]
    fn limit_config_products_do_not_overflow_for_the_largest_model() {
        let model = largest();
        let heads = MAX_HEADS * MAX_HEAD_DIM;
        let block = 4 * heads * MAX_HIDDEN_SIZE + 3 * MAX_INTERMEDIATE_SIZE * MAX_HIDDEN_SIZE;
        assert_eq!(model.projection_weights(), block * MAX_LAYERS);
        assert_eq!(model.embedding_weights(), 2 * MAX_VOCAB_SIZE * MAX_HIDDEN_SIZE);
        assert_eq!(model.kv_bytes_per_token().0, 8 * MAX_LAYERS * heads);
        let whole_context = model.kv_bytes_per_token().0.checked_mul(MAX_POSITIONS);
        assert!(whole_context.is_some());
        let adapter = AdapterFields { use_dora: Some(true), ..AdapterFields::default() };
        let asked = Requested { adapter, ..Requested::default() };
        let train = TrainSpec::check(&asked, 1000, MAX_POSITIONS).unwrap();
        let work = Workload { architecture: &model, train: &train, longest_row: MAX_POSITIONS };
        let estimate =
            training(work, Placement::default(), BatchSplit { micro_batch_size: u32::MAX, checkpointing: false });
        let served = ServedModels::new(&model, Quantization::None, ServedCompute::F32);
        assert!(estimate.peak > serving(served, Bytes(0)).peak);
        let training =
            FileFacts { rows: u64::MAX, tokens: u64::MAX, trained_tokens: u64::MAX, longest_row: MAX_POSITIONS };
        let split = BatchSplit { micro_batch_size: u32::MAX, checkpointing: true };
        let cost = TokenCost::of(work, JobFacts { training, validation: None }, split);
        assert!(cost.trained.is_finite() && cost.trained > 0.0);
    }

    #[test]
    fn keys_of_which_one_value_is_computed_are_refused_by_name() {
        for (key, value, allowed) in [
            ("hidden_act", json!("gelu"), "silu"),
            ("is_causal", json!(false), "true"),
            ("attention_dropout", json!(0.1), "0"),
            ("per_layer_config", json!({"0": {"sliding_window": 8}}), "none"),
            ("partial_rotary_factor", json!(0.5), "1: rotary embeddings cover the head"),
        ] {
            let refused = with(key, value.clone()).unwrap_err();
            assert!(refused.starts_with(&format!("config.json: {key}: ")) && refused.ends_with(allowed), "{refused}");
        }
        let quantised = with("quantization_config", json!({"quant_method": "gptq", "bits": 4})).unwrap_err();
        assert!(quantised.starts_with("config.json: quantization_config: gptq is not supported"), "{quantised}");
        for (key, value) in
            [("hidden_act", json!("swish")), ("is_causal", json!(true)), ("attention_dropout", json!(0))]
        {
            with(key, value).unwrap();
        }
    }

    #[test]
    fn limit_config_values_in_errors_are_short_and_on_one_line() {
        let refused = with("hidden_act", json!(format!("a\0b\n{}", "c".repeat(10_000)))).unwrap_err();
        assert!(refused.len() < 250 && !refused.contains(['\0', '\n']), "{refused}");
    }

    #[test]
    fn every_family_has_a_class_of_its_name() {
        for class in &CLASSES {
            assert_eq!(serde_json::to_value(class.family).unwrap(), class.model_type);
            let config = json!({"model_type": class.model_type}).to_string();
            assert_eq!(read(config.as_bytes()).unwrap().family, class.family);
        }
    }
}
