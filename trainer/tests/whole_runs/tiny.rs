//! A model of two layers with random weights, and a dataset that it can be trained on.

use std::{collections::HashMap, fs, path::Path};

use attune_model::{
    adapter::LoraAdapter,
    io::{tensor_file::write_tensors, weights},
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tch::{Device, Kind, Tensor};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "hidden_act": "silu", "rope_theta": 10000.0,
    "eos_token_id": 1}"#;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}\
    {% if add_generation_prompt %}assistant {% endif %}";

/// Returns the vocabulary: `w0` to `w49`, and the template's words.
fn vocabulary() -> serde_json::Map<String, serde_json::Value> {
    let fixed = ["<unk>", "<eos>", "user", "assistant", "system", "."].map(String::from);
    let words = fixed.into_iter().chain((0..50).map(|i| format!("w{i}")));
    words.enumerate().map(|(id, word)| (word, id.into())).collect()
}

fn tokenizer() -> String {
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<eos>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary(), "unk_token": "<unk>"},
    })
    .to_string()
}

/// Writes the model as a Hugging Face folder. `scale` is the magnitude of its weights: 0.1 is usual.
pub(crate) fn model(folder: &Path, scale: f32) {
    write_texts(folder, CONFIG);
    let architecture = weights::architecture(folder).unwrap();
    let mut random = Pcg64::seed_from_u64(5);
    let tensors: Vec<(String, Tensor)> = weights::expected(&architecture)
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<i64>() as usize;
            let numbers: Vec<f32> = match name.contains("norm") {
                true => vec![scale * 10.0; count],
                false => (0..count).map(|_| random.random_range(-scale..scale)).collect(),
            };
            (name, Tensor::from_slice(&numbers).reshape(&shape))
        })
        .collect();
    write_weights(folder, &tensors);
}

fn write_texts(folder: &Path, config: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "<eos>", "unk_token": "<unk>"}"#).unwrap();
    fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
}

fn write_weights(folder: &Path, tensors: &[(String, Tensor)]) {
    let named: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    let metadata = HashMap::from([("format".into(), "pt".into())]);
    write_tensors(&folder.join("model.safetensors"), &named, metadata).unwrap();
}

/// Writes a model with this `config.json` and small random weights in `bf16`, for runs whose results do not matter.
pub(crate) fn random_model(folder: &Path, config: &str) {
    write_texts(folder, config);
    let architecture = weights::architecture(folder).unwrap();
    let tensors: Vec<(String, Tensor)> = weights::expected(&architecture)
        .into_iter()
        .map(|(name, shape)| {
            let kind = (Kind::Float, Device::Cpu);
            let numbers =
                if name.contains("norm") { Tensor::ones(&shape, kind) } else { Tensor::randn(&shape, kind) * 0.02 };
            (name, numbers.to_kind(Kind::BFloat16))
        })
        .collect();
    write_weights(folder, &tensors);
}

/// Returns `rows` rows of unequal length that request a word's double.
pub(crate) fn dataset(rows: usize) -> String {
    let row = |i: usize| {
        let asked: Vec<String> = (0..=i % 4).map(|k| format!("w{}", (i + 3 * k) % 25)).collect();
        let answer = format!("w{}", (i % 25) * 2);
        serde_json::json!({"messages": [
            {"role": "user", "content": asked.join(" ")},
            {"role": "assistant", "content": answer},
        ]})
        .to_string()
    };
    (0..rows).map(|i| row(i) + "\n").collect()
}

/// Fills an adapter with small values, so that both of its factors have gradients.
pub(crate) fn stir(adapter: &LoraAdapter) {
    let mut random = Pcg64::seed_from_u64(11);
    for (_, factor) in adapter.parameters() {
        let numbers: Vec<f32> = (0..factor.numel()).map(|_| random.random_range(-0.05..0.05)).collect();
        factor.shallow_clone().copy_(&Tensor::from_slice(&numbers).reshape(factor.size()));
    }
}
