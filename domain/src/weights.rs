//! Which tensors a model of an architecture has, by their Hugging Face names, so that a folder can be checked before
//! anything of it is loaded.

use std::collections::BTreeMap;

use crate::architecture::{Architecture, PROJECTIONS};

/// Every tensor that a model of this architecture has, with its shape.
#[must_use]
pub fn expected(architecture: &Architecture) -> BTreeMap<String, Vec<u64>> {
    let hidden = architecture.hidden_size;
    let table = vec![architecture.vocab_size, hidden];
    let mut all = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), table.clone()),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ]);
    if !architecture.tie_word_embeddings {
        all.insert("lm_head.weight".to_owned(), table);
    }
    for layer in 0..architecture.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.insert(format!("model.layers.{layer}.{norm}.weight"), vec![hidden]);
        }
        for name in PROJECTIONS {
            let Some((outs, ins)) = architecture.projection(name) else { continue };
            let path = projection_path(layer, name);
            let biased = match name {
                "q_proj" | "k_proj" | "v_proj" => architecture.qkv_bias,
                "o_proj" => architecture.o_bias,
                _ => architecture.mlp_bias,
            };
            if biased {
                all.insert(format!("{path}.bias"), vec![outs]);
            }
            all.insert(format!("{path}.weight"), vec![outs, ins]);
        }
        if architecture.qk_norm {
            for norm in ["q_norm", "k_norm"] {
                all.insert(format!("model.layers.{layer}.self_attn.{norm}.weight"), vec![architecture.head_dim]);
            }
        }
    }
    all
}

/// The name of a projection's tensors, without `.weight`: `model.layers.3.self_attn.q_proj`.
#[must_use]
pub fn projection_path(layer: u64, projection: &str) -> String {
    let room = if matches!(projection, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    format!("model.layers.{layer}.{room}.{projection}")
}

/// Tensors that older exports carry and that a decoder works out itself, or that a tied head repeats.
#[must_use]
pub fn is_superfluous(name: &str, architecture: &Architecture) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (name == "lm_head.weight" && architecture.tie_word_embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN2: &str = r#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256,
        "hidden_act": "silu", "tie_word_embeddings": true}"#;

    #[test]
    fn a_tied_model_with_biases_has_these() {
        let architecture = Architecture::from_config_json(QWEN2.as_bytes()).unwrap();
        let all = expected(&architecture);
        assert_eq!(all.len(), 2 + 2 * (2 + 7 + 3));
        assert_eq!(all["model.layers.1.self_attn.k_proj.bias"], [32]);
        assert_eq!(all["model.layers.0.mlp.down_proj.weight"], [64, 128]);
        assert!(!all.contains_key("lm_head.weight") && is_superfluous("lm_head.weight", &architecture));
    }
}
