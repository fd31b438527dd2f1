//! Parses a `config.json` as the configuration class of its family in transformers does: the same keys, the same
//! defaults. A key that changes the computation in a way that Attune does not support is refused by name.
//!
//! Source: `configuration_llama.py`, `…_mistral.py`, `…_qwen2.py`, `…_qwen3.py` in transformers, 5.23.

use serde_json::{Map, Value};

use super::{
    Architecture, ArchitectureError, Family,
    bounds::{
        MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN_SIZE, MAX_INTERMEDIATE_SIZE, MAX_LAYERS, MAX_POSITIONS, MAX_RMS_NORM_EPS,
        MAX_VOCAB_SIZE, MIN_RMS_NORM_EPS,
    },
    keys::{Keys, shown},
    rope,
};
use crate::text::text_file::model_document;

/// The sliding window of the classes that have one, if a config does not set it.
const DEFAULT_WINDOW: u64 = 4096;

/// The first layer with a sliding window in Qwen's classes, if a config does not set it.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

/// The values of a class for numbers that a config does not set.
struct Defaults {
    vocab_size: u64,
    intermediate_size: u64,
    max_position_embeddings: u64,
    /// The number of key and value heads; `None`: as many as query heads.
    num_key_value_heads: Option<u64>,
    /// The width of a head; `None`: `hidden_size / num_attention_heads`.
    head_dim: Option<u64>,
}

const DEFAULT_HIDDEN_SIZE: u64 = 4096;
const DEFAULT_LAYERS: u64 = 32;
const DEFAULT_HEADS: u64 = 32;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;

const fn defaults(family: Family) -> Defaults {
    let (vocab_size, intermediate_size, max_position_embeddings, num_key_value_heads, head_dim) = match family {
        Family::Llama => (32_000, 11_008, 2048, None, None),
        Family::Mistral => (32_000, 14_336, 131_072, Some(8), None),
        Family::Qwen2 => (151_936, 22_016, 32_768, Some(32), None),
        Family::Qwen3 => (151_936, 22_016, 32_768, Some(32), Some(128)),
    };
    Defaults { vocab_size, intermediate_size, max_position_embeddings, num_key_value_heads, head_dim }
}

/// Parses the file.
pub(super) fn read(text: &[u8]) -> Result<Architecture, ArchitectureError> {
    let text = model_document(text).map_err(ArchitectureError::Unreadable)?;
    let map: Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| ArchitectureError::Unreadable(e.to_string()))?;
    let keys = Keys { path: "", map: &map };
    let family = family(keys)?;
    refuse_unsupported(keys, family)?;
    let default = defaults(family);
    let size = |key, most, default: u64| Ok::<_, ArchitectureError>(keys.whole(key, 1..=most)?.unwrap_or(default));
    let hidden_size = size("hidden_size", MAX_HIDDEN_SIZE, DEFAULT_HIDDEN_SIZE)?;
    let num_attention_heads = size("num_attention_heads", MAX_HEADS, DEFAULT_HEADS)?;
    let key_heads = default.num_key_value_heads.filter(|_| !keys.is_null("num_key_value_heads"));
    let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS, DEFAULT_LAYERS)?;
    let max_position_embeddings = size("max_position_embeddings", MAX_POSITIONS, default.max_position_embeddings)?;
    let (rope_theta, rope_scaling) = rope::read(keys, max_position_embeddings)?;
    let (sliding_window, full_attention_layers) = windows(keys, family, num_hidden_layers)?;
    let attention_bias = keys.truth("attention_bias")?.unwrap_or(false);
    let eps = keys.real("rms_norm_eps", MIN_RMS_NORM_EPS..=MAX_RMS_NORM_EPS)?;
    consistent(Architecture {
        family,
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
        qkv_bias: family == Family::Qwen2 || attention_bias,
        o_bias: family != Family::Qwen2 && attention_bias,
        mlp_bias: keys.truth("mlp_bias")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        sliding_window,
        full_attention_layers,
    })
}

fn family(keys: Keys<'_>) -> Result<Family, ArchitectureError> {
    const KEY: &str = "model_type";
    Ok(match keys.text(KEY)?.ok_or_else(|| ArchitectureError::Missing(KEY.into()))? {
        "llama" => Family::Llama,
        "mistral" => Family::Mistral,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(keys.refuse(KEY, shown(&other.into()), "llama, mistral, qwen2, qwen3")),
    })
}

/// Refuses keys with a value other than the only supported one.
fn refuse_unsupported(keys: Keys<'_>, family: Family) -> Result<(), ArchitectureError> {
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
    // Keys that the family's class does not have: other libraries read them, so their meaning is ambiguous.
    if family == Family::Mistral {
        neutral("attention_bias", "false in the family mistral", &|given| *given == false)?;
    }
    if family != Family::Llama {
        neutral("mlp_bias", "false outside the family llama", &|given| *given == false)?;
    }
    Ok(())
}

/// Returns the sliding window, and the layers with full attention if there is one.
fn windows(keys: Keys<'_>, family: Family, layers: u64) -> Result<(Option<u64>, Vec<u64>), ArchitectureError> {
    let is_used = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => keys.truth("use_sliding_window")?.unwrap_or(false),
    };
    let window = match keys.whole("sliding_window", 1..=MAX_POSITIONS) {
        _ if !is_used || keys.is_null("sliding_window") => None,
        given => Some(given?.unwrap_or(DEFAULT_WINDOW)),
    };
    let first = match family {
        Family::Llama | Family::Mistral => 0,
        Family::Qwen2 | Family::Qwen3 => {
            keys.whole("max_window_layers", 0..=u64::MAX)?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS)
        }
    };
    let mut has_window: Vec<bool> = (0..layers).map(|layer| window.is_some() && layer >= first).collect();
    if let Some(given) = keys.get("layer_types") {
        let named = layer_types(keys, given, layers)?;
        let by_list = matches!(family, Family::Qwen2 | Family::Qwen3) && (window.is_some() || !named.contains(&true));
        if !by_list && named != has_window {
            let allowed = if window.is_some() {
                "sliding_attention in all layers"
            } else {
                "full_attention in all layers, as the other keys give no window"
            };
            return Err(keys.refuse("layer_types", shown(given), allowed));
        }
        has_window = named;
    }
    let full: Vec<u64> = (0..).zip(&has_window).filter(|(_, has)| !**has).map(|(layer, _)| layer).collect();
    Ok(if full.len() == has_window.len() { (None, Vec::new()) } else { (window, full) })
}

/// Returns for each layer whether a `layer_types` list gives it a window.
fn layer_types(keys: Keys<'_>, given: &Value, layers: u64) -> Result<Vec<bool>, ArchitectureError> {
    const KEY: &str = "layer_types";
    let list = given.as_array().filter(|list| list.len() as u64 == layers);
    let list = list.ok_or_else(|| keys.refuse(KEY, shown(given), format!("a list of {layers}, one for each layer")))?;
    let kinds = list.iter().map(|kind| match kind.as_str() {
        Some("full_attention" | "attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(keys.refuse(KEY, shown(kind), "full_attention, sliding_attention")),
    });
    kinds.collect()
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
        memory::{Cut, Workload, serving, training},
        pace::Pace,
        spec::{Quantization, Requested, TrainSpec},
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
        assert_eq!(windowed(json!(MAX_POSITIONS)).unwrap().sliding_window, Some(MAX_POSITIONS));
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
        let asked = Requested { use_dora: Some(true), ..Requested::default() };
        let train = TrainSpec::check(&asked, 1000, MAX_POSITIONS).unwrap();
        let work = Workload { architecture: &model, train: &train, longest_row: MAX_POSITIONS };
        let estimate = training(work, Cut { micro_batch_size: u32::MAX, checkpointing: false });
        assert!(estimate.peak > serving(&model, Quantization::None, Bytes(0)).peak);
        assert!(Pace::assumed(&model, 2, false).tokens_per_second > 0.0);
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
    fn a_list_of_layer_types_that_the_class_contradicts_is_refused() {
        let read = |config: Value| read(config.to_string().as_bytes()).map_err(|e| e.to_string());
        let mixed = json!(["full_attention", "sliding_attention"]);
        let qwen = |used: bool, list: &Value| {
            json!({"model_type": "qwen2", "num_hidden_layers": 2,
                "use_sliding_window": used, "layer_types": list})
        };
        let model = read(qwen(true, &mixed)).unwrap();
        assert_eq!((model.window(0), model.window(1)), (None, Some(4096)));
        assert!(read(qwen(false, &mixed)).unwrap_err().contains("layer_types: "));
        for family in ["llama", "mistral"] {
            let refused = read(json!({"model_type": family, "num_hidden_layers": 2, "layer_types": mixed}));
            assert!(refused.unwrap_err().starts_with("config.json: layer_types: "), "{family}");
        }
        for list in [json!(["full_attention"]), json!("full_attention"), json!(["full_attention", "chunked_attention"])]
        {
            assert!(read(qwen(true, &list)).unwrap_err().contains("layer_types: "), "{list}");
        }
    }
}
