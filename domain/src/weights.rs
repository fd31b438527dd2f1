//! The tensors of a model of an architecture, by their Hugging Face names, so that a folder can be checked before
//! anything of it is loaded.

use std::collections::BTreeMap;

use crate::architecture::{
    Architecture, PROJECTIONS,
    gguf_blocks::{BlockKind, KeptBlocks},
};

/// The tensors of an architecture, by rule: a lookup costs the same for any number of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The tensors outside of the layers, by their full names.
    outer: BTreeMap<&'static str, Vec<u64>>,
    /// The tensors in each layer, by the part of their names after `model.layers.3.`.
    in_layer: BTreeMap<String, Vec<u64>>,
    layers: u64,
}

impl Expected {
    /// Returns the tensors that a model of this architecture has.
    #[must_use]
    pub fn new(architecture: &Architecture) -> Self {
        let hidden = architecture.hidden_size;
        let table = vec![architecture.vocab_size, hidden];
        let mut outer =
            BTreeMap::from([("model.embed_tokens.weight", table.clone()), ("model.norm.weight", vec![hidden])]);
        if !architecture.tie_word_embeddings {
            outer.insert("lm_head.weight", table);
        }
        Self { outer, in_layer: in_layer(architecture), layers: architecture.num_hidden_layers }
    }

    /// Returns the shape of the tensor of this name; `None`: the architecture has no such tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[u64]> {
        if let Some(shape) = self.outer.get(name) {
            return Some(shape);
        }
        let (number, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
        let layer: u64 = number.parse().ok().filter(|layer| *layer < self.layers)?;
        let shape = self.in_layer.get(rest)?;
        // `07` is not a layer number.
        (layer.to_string() == number).then_some(shape)
    }

    /// Returns the number of tensors.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.layers.saturating_mul(self.in_layer.len() as u64).saturating_add(self.outer.len() as u64)
    }

    /// Iterates over all names and shapes; each is generated on demand.
    pub fn iter(&self) -> impl Iterator<Item = (String, &[u64])> {
        let outer = self.outer.iter().map(|(name, shape)| ((*name).to_owned(), shape.as_slice()));
        let layers = (0..self.layers).flat_map(|layer| {
            self.in_layer.iter().map(move |(rest, shape)| (format!("{LAYERS}{layer}.{rest}"), shape.as_slice()))
        });
        outer.chain(layers)
    }
}

/// The prefix of the names of all layers' tensors.
const LAYERS: &str = "model.layers.";

fn in_layer(architecture: &Architecture) -> BTreeMap<String, Vec<u64>> {
    let mut all = BTreeMap::new();
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        all.insert(format!("{norm}.weight"), vec![architecture.hidden_size]);
    }
    for name in PROJECTIONS {
        let Some((outs, ins)) = architecture.projection(name) else { continue };
        let path = path_in_layer(name);
        if architecture.layers.has_bias(name) {
            all.insert(format!("{path}.bias"), vec![outs]);
        }
        all.insert(format!("{path}.weight"), vec![outs, ins]);
    }
    if architecture.layers.qk_norm {
        for norm in ["q_norm", "k_norm"] {
            all.insert(format!("self_attn.{norm}.weight"), vec![architecture.head_dim]);
        }
    }
    all
}

/// Returns every tensor of a model of this architecture, with its shape. Only for models whose tensors exist: the
/// number that an untrusted `config.json` implies is unbounded, see [`Expected`].
#[must_use]
pub fn expected(architecture: &Architecture) -> BTreeMap<String, Vec<u64>> {
    Expected::new(architecture).iter().map(|(name, shape)| (name, shape.to_vec())).collect()
}

/// Returns the name of a projection's tensors, without `.weight`: `model.layers.3.self_attn.q_proj`.
#[must_use]
pub fn projection_path(layer: u64, projection: &str) -> String {
    format!("{LAYERS}{layer}.{}", path_in_layer(projection))
}

fn path_in_layer(projection: &str) -> String {
    let module = if matches!(projection, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    format!("{module}.{projection}")
}

/// Returns whether a tensor is redundant: older exports contain it although the decoder computes it, or a tied head
/// repeats it.
#[must_use]
pub fn is_superfluous(name: &str, architecture: &Architecture) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (name == "lm_head.weight" && architecture.tie_word_embeddings)
}

/// The projections with the same input, which the decoder computes as one.
const TOGETHER: [&[&str]; 4] =
    [&["q_proj", "k_proj", "v_proj"], &["o_proj"], &["gate_proj", "up_proj"], &["down_proj"]];

/// Returns the weights that a served base keeps in blocks, from the kind of the blocks of each tensor, by its name;
/// `None`: it keeps none. Projections that are computed as one are kept if all of them are in blocks. Only for models
/// whose tensors exist.
#[must_use]
pub fn kept_blocks(model: &Architecture, kind: impl Fn(&str) -> Option<BlockKind>) -> Option<KeptBlocks> {
    let sizes = |name: &str, (outputs, inputs): (u64, u64)| {
        let row = kind(name)?.row_bytes(inputs)?;
        Some((outputs.checked_mul(inputs)?, outputs.checked_mul(row)?))
    };
    let mut kept = KeptBlocks::default();
    let lm_head = (!model.tie_word_embeddings).then_some("lm_head.weight");
    for name in ["model.embed_tokens.weight"].into_iter().chain(lm_head) {
        if let Some((weights, bytes)) = sizes(name, (model.vocab_size, model.hidden_size)) {
            kept.embedding_weights += weights;
            kept.embedding_bytes += bytes;
        }
    }
    for layer in 0..model.num_hidden_layers {
        for names in TOGETHER {
            let of = |name: &&str| sizes(&format!("{}.weight", projection_path(layer, name)), model.projection(name)?);
            let Some(parts) = names.iter().map(of).collect::<Option<Vec<_>>>() else { continue };
            for (weights, bytes) in parts {
                kept.projection_weights += weights;
                kept.projection_bytes += bytes;
            }
        }
    }
    (kept != KeptBlocks::default()).then_some(kept)
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

    #[test]
    fn projections_that_are_computed_as_one_are_kept_together() {
        let architecture = Architecture::from_config_json(QWEN2.as_bytes()).unwrap();
        let of = |dense: &str| {
            let kind = |name: &str| (!name.ends_with(dense)).then_some(BlockKind::Q4Zero);
            kept_blocks(&architecture, kind).unwrap()
        };
        let all = of("none");
        assert_eq!(all.projection_weights, architecture.projection_weights());
        assert_eq!((all.projection_bytes, all.embedding_bytes), (all.projection_weights / 32 * 18, 100 * 36));
        assert_eq!(of("down_proj.weight").projection_weights, all.projection_weights - 2 * 64 * 128);
        assert_eq!(of("layers.0.self_attn.k_proj.weight").projection_weights, all.projection_weights - 128 * 64);
        assert_eq!(kept_blocks(&architecture, |_| None), None);
    }

    #[test]
    fn attack_a02_a_question_about_a_tensor_costs_the_same_for_any_number_of_layers() {
        let mut architecture = Architecture::from_config_json(QWEN2.as_bytes()).unwrap();
        architecture.num_hidden_layers = u64::MAX;
        let expected = Expected::new(&architecture);
        assert_eq!(expected.count(), u64::MAX);
        assert_eq!(expected.shape("model.layers.9000000000.self_attn.k_proj.bias"), Some(&[32][..]));
        assert_eq!(expected.iter().nth(100).map(|(_, shape)| shape.len()), Some(2));
        architecture.num_hidden_layers = 2;
        let expected = Expected::new(&architecture);
        for name in
            ["model.layers.2.input_layernorm.weight", "model.layers.01.input_layernorm.weight", "model.layers.x.y"]
        {
            assert_eq!(expected.shape(name), None, "{name}");
        }
        assert!(expected.iter().all(|(name, shape)| expected.shape(&name) == Some(shape)));
        assert_eq!(expected.iter().count() as u64, expected.count());
    }
}
