//! The conversion of a GGUF file's metadata to `config.json`, as transformers would write it.
//!
//! Source: `GGUF_CONFIG_MAPPING` in transformers' `integrations/ggml.py`; llama.cpp's `convert_hf_to_gguf.py` for the
//! meaning of the keys.

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::rope;
use crate::source::Source;

/// A family: llama.cpp's name of its architecture, and what a file of it is converted to.
pub(crate) struct Named {
    arch: &'static str,
    /// The family's `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// The family's class in transformers.
    class: &'static str,
    /// `true`: llama.cpp permutes the rows of q and k.
    is_permuted: bool,
}

/// All families.
pub(crate) const FAMILIES: [Named; 4] = [
    Named { arch: "llama", model_type: "llama", class: "LlamaForCausalLM", is_permuted: true },
    Named { arch: "mistral", model_type: "mistral", class: "MistralForCausalLM", is_permuted: true },
    Named { arch: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", is_permuted: false },
    Named { arch: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", is_permuted: false },
];

/// Returns the complete `config.json`.
pub(crate) fn config_json(source: &mut Source) -> Result<Map<String, Value>, ImportError> {
    let arch = source.text("general.architecture").ok_or_else(|| key_missing("general.architecture"))?.to_owned();
    let given = |name: &str| source.whole(&format!("{arch}.{name}"));
    let window = given("attention.sliding_window")?.filter(|window| *window > 0);
    let named = named(&arch, window.is_some())?;
    refuse_unsupported(source, &arch)?;
    let number = |name: &str| given(name)?.ok_or_else(|| key_missing(&format!("{arch}.{name}")));
    let hidden = number("embedding_length")?;
    let heads = number("attention.head_count")?.max(1);
    let head_dim = given("attention.key_length")?.or(given("rope.dimension_count")?).unwrap_or(hidden / heads);
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
    set("num_key_value_heads", json!(given("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("vocab_size", json!(vocab.shape.first()));
    set("max_position_embeddings", json!(number("context_length")?));
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    set("rms_norm_eps", json!(source.real(&eps)?.ok_or_else(|| key_missing(&eps))?));
    // llama.cpp writes the output matrix only if it differs from the embedding table.
    set("tie_word_embeddings", json!(source.tensor("output.weight").is_none()));
    set("attention_bias", json!(attention_bias));
    if matches!(named.model_type, "llama") {
        set("mlp_bias", json!(source.tensor("blk.0.ffn_gate.bias").is_some()));
    }
    match named.model_type {
        "mistral" => drop(set("sliding_window", json!(window))),
        "qwen2" | "qwen3" => drop(set("use_sliding_window", json!(false))),
        _ => {}
    }
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")] {
        if let Some(id) = source.whole(&format!("tokenizer.ggml.{key}_token_id"))? {
            set(&format!("{name}_token_id"), json!(id));
        }
    }
    let theta = rope::theta(source, &arch)?;
    let mut rope = rope::scaling(source, &arch, theta, head_dim)?;
    // transformers 4 reads these two keys, transformers 5 reads `rope_parameters`.
    config.insert("rope_theta".into(), json!(theta));
    let scaled = rope.get("rope_type") != Some(&json!("default"));
    config.insert("rope_scaling".into(), if scaled { Value::Object(rope.clone()) } else { Value::Null });
    rope.insert("rope_theta".into(), json!(theta));
    config.insert("rope_parameters".into(), Value::Object(rope));
    config.insert("use_cache".into(), json!(true));
    Ok(config)
}

/// Returns the family's names. llama.cpp names Mistral's models `llama`, and like transformers we keep that: the
/// computation is the same, except with a sliding window, which only Mistral's class has.
fn named(arch: &str, windowed: bool) -> Result<Named, ImportError> {
    let known = if windowed && arch == "llama" { "mistral" } else { arch };
    FAMILIES.into_iter().find(|family| family.arch == known).ok_or_else(|| ImportError::Architecture {
        given: arch.to_owned(),
        allowed: FAMILIES.map(|family| family.arch).join(", "),
    })
}

/// Returns whether llama.cpp permutes the rows of q and k of this architecture.
pub(crate) fn is_permuted(arch: &str) -> bool {
    FAMILIES.iter().any(|family| family.arch == arch && family.is_permuted)
}

/// Keys of other architectures that some files contain, with the values at which they have no effect.
const NEUTRAL: [(&str, &[f64]); 7] = [
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
];

fn refuse_unsupported(source: &Source, arch: &str) -> Result<(), ImportError> {
    let number = |name: &str| source.whole(&format!("{arch}.{name}"));
    if number("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(ImportError::Unsupported("mixtures of experts are not supported; import a dense model".into()));
    }
    for (name, neutral) in NEUTRAL {
        let key = format!("{arch}.{name}");
        if let Some(given) = source.real(&key)?.filter(|given| !neutral.contains(given)) {
            return Err(ImportError::Unsupported(format!("{key} {given} is not supported; allowed: {}", neutral[0])));
        }
    }
    if source.flag(&format!("{arch}.attention.causal")) == Some(false) {
        return Err(ImportError::Unsupported(format!("{arch}.attention.causal false is not supported; allowed: true")));
    }
    let head_dim = number("attention.key_length")?;
    if let (Some(rotated), Some(head_dim)) = (number("rope.dimension_count")?, head_dim)
        && rotated != head_dim
    {
        return Err(ImportError::Unsupported(format!(
            "rotary embeddings on {rotated} of {head_dim} dimensions are not supported; they must cover the head"
        )));
    }
    if let (Some(key), Some(value)) = (head_dim, number("attention.value_length")?)
        && key != value
    {
        return Err(ImportError::Unsupported(format!(
            "heads of key width {key} and value width {value} are not supported"
        )));
    }
    Ok(())
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
    fn a_window_makes_a_llama_a_mistral() {
        assert_eq!(named("llama", true).unwrap().model_type, "mistral");
        assert_eq!(named("llama", false).unwrap().model_type, "llama");
        assert!(is_permuted("llama") && is_permuted("mistral") && !is_permuted("qwen2") && !is_permuted("gemma2"));
        let refused = named("gemma2", false).err().unwrap().to_string();
        assert!(refused.starts_with("architecture 'gemma2' is not supported; allowed: llama, "), "{refused}");
    }
}
