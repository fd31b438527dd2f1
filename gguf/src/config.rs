//! `config.json` and `generation_config.json`, as transformers would write them, from a GGUF file's metadata.
//!
//! Source: `GGUF_CONFIG_MAPPING` in transformers' `integrations/ggml.py`; llama.cpp's `convert_hf_to_gguf.py` for
//! what the keys mean and for Llama 3's `rope_freqs`.

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::source::{Source, dequantise};

/// The family's name in `config.json` and its class in transformers.
struct Named {
    model_type: &'static str,
    class: &'static str,
}

/// The whole `config.json`.
pub(crate) fn config_json(source: &mut Source) -> Result<Map<String, Value>, ImportError> {
    let arch = source.text("general.architecture").ok_or_else(|| key_missing("general.architecture"))?.to_owned();
    let named = named(&arch, source.number(&format!("{arch}.attention.sliding_window")).is_some())?;
    refuse_unsupported(source, &arch)?;
    let number = |name: &str| {
        let key = format!("{arch}.{name}");
        source.number(&key).ok_or_else(|| key_missing(&key))
    };
    let hidden = number("embedding_length")?;
    let heads = number("attention.head_count")?.max(1);
    let head_dim = number("attention.key_length").or_else(|_| number("rope.dimension_count")).unwrap_or(hidden / heads);
    let vocab = source.tensor("token_embd.weight").ok_or_else(|| tensor_missing("token_embd.weight"))?;
    let attention_bias = arch == "llama" && source.tensor("blk.0.attn_q.bias").is_some();

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_owned(), value);
    set("architectures", json!([named.class]));
    set("model_type", json!(named.model_type));
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(number("feed_forward_length")?));
    set("num_hidden_layers", json!(number("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(number("attention.head_count_kv").unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("vocab_size", json!(vocab.shape.first()));
    set("max_position_embeddings", json!(number("context_length")?));
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    set("rms_norm_eps", json!(source.float(&eps).ok_or_else(|| key_missing(&eps))?));
    // llama.cpp writes the output matrix only when it is not the embedding table.
    set("tie_word_embeddings", json!(source.tensor("output.weight").is_none()));
    set("attention_bias", json!(attention_bias));
    if matches!(named.model_type, "llama") {
        set("mlp_bias", json!(false));
    }
    match named.model_type {
        "mistral" => drop(set("sliding_window", json!(number("attention.sliding_window").ok()))),
        "qwen2" | "qwen3" => drop(set("use_sliding_window", json!(false))),
        _ => {}
    }
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")] {
        if let Some(id) = source.number(&format!("tokenizer.ggml.{key}_token_id")) {
            set(&format!("{name}_token_id"), json!(id));
        }
    }
    let theta = source.float(&format!("{arch}.rope.freq_base")).unwrap_or(10_000.0);
    let mut rope = rope_scaling(source, &arch, theta, head_dim)?;
    // transformers 4 reads these two, transformers 5 `rope_parameters`.
    config.insert("rope_theta".into(), json!(theta));
    let scaled = rope.get("rope_type") != Some(&json!("default"));
    config.insert("rope_scaling".into(), if scaled { Value::Object(rope.clone()) } else { Value::Null });
    rope.insert("rope_theta".into(), json!(theta));
    config.insert("rope_parameters".into(), Value::Object(rope));
    config.insert("use_cache".into(), json!(true));
    Ok(config)
}

/// `generation_config.json`: where an answer ends. A chat model may have a token of turn's end beside that of text's end.
pub(crate) fn generation_json(source: &Source) -> Map<String, Value> {
    let id = |name: &str| source.number(&format!("tokenizer.ggml.{name}_token_id"));
    let mut config = Map::new();
    if let Some(bos) = id("bos") {
        config.insert("bos_token_id".into(), json!(bos));
    }
    match (id("eos"), id("eot")) {
        (Some(eos), Some(eot)) if eos != eot => drop(config.insert("eos_token_id".into(), json!([eos, eot]))),
        (Some(id), _) | (None, Some(id)) => drop(config.insert("eos_token_id".into(), json!(id))),
        (None, None) => {}
    }
    if let Some(pad) = id("padding") {
        config.insert("pad_token_id".into(), json!(pad));
    }
    config
}

/// llama.cpp gives Mistral's models the name `llama`, and like transformers we leave it: they are the same arithmetic,
/// unless there is a window, which only Mistral's class has.
fn named(arch: &str, windowed: bool) -> Result<Named, ImportError> {
    let (model_type, class) = match arch {
        "mistral" => ("mistral", "MistralForCausalLM"),
        "llama" if windowed => ("mistral", "MistralForCausalLM"),
        "llama" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        other => return Err(ImportError::Architecture(other.to_owned())),
    };
    Ok(Named { model_type, class })
}

fn refuse_unsupported(source: &Source, arch: &str) -> Result<(), ImportError> {
    let number = |name: &str| source.number(&format!("{arch}.{name}"));
    if number("expert_count").is_some_and(|experts| experts > 0) {
        return Err(ImportError::Unsupported("mixtures of experts are not supported; give a dense model".into()));
    }
    let head_dim = number("attention.key_length");
    if let (Some(rotated), Some(head_dim)) = (number("rope.dimension_count"), head_dim)
        && rotated != head_dim
    {
        return Err(ImportError::Unsupported(format!(
            "rotary embeddings on {rotated} of {head_dim} dimensions are not supported; they must cover the head"
        )));
    }
    if let (Some(key), Some(value)) = (head_dim, number("attention.value_length"))
        && key != value
    {
        return Err(ImportError::Unsupported(format!(
            "heads of key width {key} and value width {value} are not supported"
        )));
    }
    Ok(())
}

/// `rope_type` and what belongs to it.
fn rope_scaling(source: &mut Source, arch: &str, theta: f64, head_dim: u64) -> Result<Map<String, Value>, ImportError> {
    let object = |value: Value| value.as_object().cloned().unwrap_or_default();
    if let Some(freqs) = source.tensor("rope_freqs.weight") {
        let raw = source.raw_rows(&freqs, 0..freqs.rows())?;
        let factors = dequantise(freqs.kind, &raw, usize::try_from(freqs.shape.iter().product::<u64>()).unwrap_or(0))?;
        if factors.iter().all(|factor| (factor - 1.0).abs() < 1e-6) {
            return Ok(object(json!({"rope_type": "default"})));
        }
        return llama3(&factors, theta, head_dim).map(object).ok_or_else(|| {
            ImportError::Unsupported(
                "rope_freqs.weight is not Llama 3's scaling, the only one that is supported".into(),
            )
        });
    }
    let factor = source.float(&format!("{arch}.rope.scaling.factor"));
    match (source.text(&format!("{arch}.rope.scaling.type")), factor) {
        (None | Some("none"), _) => Ok(object(json!({"rope_type": "default"}))),
        (Some("linear"), Some(factor)) => Ok(object(json!({"rope_type": "linear", "factor": factor}))),
        (Some(other), _) => Err(ImportError::Unsupported(format!(
            "rope scaling '{other}' is not supported; allowed: none, linear, Llama 3's"
        ))),
    }
}

/// Llama 3's parameters from the factors that llama.cpp made of them: the candidates are tried, and one must give the
/// same factors back.
fn llama3(factors: &[f32], theta: f64, head_dim: u64) -> Option<Value> {
    if factors.len() as u64 != head_dim / 2 {
        return None;
    }
    let factor = f64::from(factors.iter().copied().fold(1.0_f32, f32::max));
    let (low, high) = (1.0, 4.0);
    (10..=18).map(|power| (1_u64 << power) as f64).find_map(|original| {
        let same = factors.iter().enumerate().all(|(i, found)| {
            let wanted = llama3_factor(i, theta, head_dim, [factor, low, high, original]);
            (f64::from(*found) - wanted).abs() <= 1e-3 * wanted
        });
        same.then(|| {
            json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64})
        })
    })
}

/// By how much frequency `i` is divided. Source: `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.
fn llama3_factor(i: usize, theta: f64, head_dim: u64, [factor, low, high, original]: [f64; 4]) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

fn key_missing(key: &str) -> ImportError {
    ImportError::Missing(format!("metadata '{key}'"))
}

fn tensor_missing(name: &str) -> ImportError {
    ImportError::Missing(format!("tensor '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_parameters_are_found_from_their_factors() {
        for (factor, original) in [(8.0, 8192.0), (32.0, 8192.0), (4.0, 32768.0)] {
            let factors: Vec<f32> =
                (0..32).map(|i| llama3_factor(i, 500_000.0, 64, [factor, 1.0, 4.0, original]) as f32).collect();
            let found = llama3(&factors, 500_000.0, 64).unwrap();
            assert_eq!(found["factor"], json!(factor));
            assert_eq!(found["original_max_position_embeddings"], json!(original as u64));
        }
    }

    #[test]
    fn other_factors_are_not_taken_for_llama_3s() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 / 7.0).collect();
        assert!(llama3(&factors, 500_000.0, 64).is_none());
    }

    #[test]
    fn a_window_makes_a_llama_a_mistral() {
        assert_eq!(named("llama", true).unwrap().model_type, "mistral");
        assert_eq!(named("llama", false).unwrap().model_type, "llama");
        let refused = named("gemma2", false).err().unwrap().to_string();
        assert_eq!(refused, "architecture 'gemma2' is not supported; allowed: llama, mistral, qwen2, qwen3");
    }
}
