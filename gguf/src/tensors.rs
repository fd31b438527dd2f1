//! The tensors of an architecture: their Hugging Face names and shapes, and llama.cpp's names for them.
//!
//! Source: `GGUF_ARCHS`' renamings in transformers' `integrations/gguf/gguf_conversion_mapping.py`.

use attune_domain::architecture::{Architecture, PROJECTIONS};

/// The names of a block's tensors in GGUF and in Hugging Face.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Returns the Hugging Face name of a GGUF tensor; `None` if it has none.
pub(crate) fn renamed(gguf: &str) -> Option<String> {
    match gguf {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        _ => {}
    }
    let (block, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (leaf, kind) = rest.rsplit_once('.')?;
    let (_, name) = BLOCK.iter().find(|(known, _)| *known == leaf)?;
    let block: u32 = block.parse().ok()?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{block}.{name}.{kind}"))
}

/// Returns every tensor of an architecture, with its shape.
pub(crate) fn expected(model: &Architecture) -> Vec<(String, Vec<u64>)> {
    let hidden = model.hidden_size;
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![model.vocab_size, hidden])];
    for layer in 0..model.num_hidden_layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        all.push((at("input_layernorm.weight"), vec![hidden]));
        all.push((at("post_attention_layernorm.weight"), vec![hidden]));
        for (i, name) in PROJECTIONS.iter().enumerate() {
            let Some((out, input)) = model.projection(name) else { continue };
            let part = if i < 4 { "self_attn" } else { "mlp" };
            all.push((at(&format!("{part}.{name}.weight")), vec![out, input]));
            if (i < 3 && model.qkv_bias) || (i == 3 && model.o_bias) || (i > 3 && model.mlp_bias) {
                all.push((at(&format!("{part}.{name}.bias")), vec![out]));
            }
        }
        if model.qk_norm {
            all.push((at("self_attn.q_norm.weight"), vec![model.head_dim]));
            all.push((at("self_attn.k_norm.weight"), vec![model.head_dim]));
        }
    }
    all.push(("model.norm.weight".into(), vec![hidden]));
    if !model.tie_word_embeddings {
        all.push(("lm_head.weight".into(), vec![model.vocab_size, hidden]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hugging_faces() {
        assert_eq!(renamed("blk.12.attn_q.bias").unwrap(), "model.layers.12.self_attn.q_proj.bias");
        assert_eq!(renamed("blk.0.ffn_norm.weight").unwrap(), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(renamed("output.weight").unwrap(), "lm_head.weight");
        for unknown in ["blk.x.attn_q.weight", "blk.0.ssm_a", "rope_freqs.weight", "blk.0.attn_q.scale", "cls.weight"] {
            assert_eq!(renamed(unknown), None, "{unknown}");
        }
    }
}
