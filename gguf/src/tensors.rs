//! llama.cpp's names of tensors. Their Hugging Face names and shapes are those of `attune_domain::weights`.
//!
//! Source: `GGUF_ARCHS`' renamings in transformers' `integrations/gguf/gguf_conversion_mapping.py`.

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

/// Returns the GGUF name of a Hugging Face tensor; `None` if it has none.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        _ => {}
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (path, kind) = rest.rsplit_once('.')?;
    let (gguf, _) = BLOCK.iter().find(|(_, known)| *known == path)?;
    Some(format!("blk.{block}.{gguf}.{kind}"))
}

#[cfg(test)]
mod tests {
    use attune_domain::{architecture::Architecture, weights::expected};

    use super::*;
    use crate::config::FAMILIES;

    #[test]
    fn every_tensor_of_every_family_has_a_name_in_gguf() {
        let outer = ["token_embd", "output_norm", "output"].map(|name| format!("{name}.weight"));
        let block = BLOCK.iter().flat_map(|(name, _)| ["weight", "bias"].map(|kind| format!("blk.0.{name}.{kind}")));
        let known: Vec<String> = outer.into_iter().chain(block).filter_map(|name| renamed(&name)).collect();
        for family in FAMILIES.map(|family| family.model_type) {
            let config = format!(r#"{{"model_type": "{family}", "num_hidden_layers": 1}}"#);
            for name in expected(&Architecture::from_config_json(config.as_bytes()).unwrap()).keys() {
                assert!(known.contains(name), "{name} of {family}");
                assert_eq!(gguf_name(name).and_then(|gguf| renamed(&gguf)).as_ref(), Some(name));
            }
        }
    }

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
