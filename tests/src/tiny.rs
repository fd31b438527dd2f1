//! A Llama model with two blocks, a byte-level vocabulary and random weights: the base model of the tests across
//! processes.
//!
//! `attune models import` imports its folder. Chat rows are rendered as ChatML, so that the end-of-turn token, the
//! prefix rule and the loss mask are the real ones.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const LAYERS: usize = 2;
/// The vocabulary's size: 256 bytes and three special tokens, rounded up as in real models.
const VOCAB: usize = 272;

/// The widths of the model.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    inner: usize,
}

/// The widths of the usual model.
const NARROW: Widths = Widths { hidden: 64, inner: 128 };

/// The widths of a model whose rows are whole blocks of 256 weights.
const WIDE: Widths = Widths { hidden: 256, inner: 512 };

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const TEMPLATE: &str = "\
    {% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A ChatML template with tools, a short form of those of Qwen 2.5 and Hermes 2 Pro.
pub const TOOLS_TEMPLATE: &str = "\
    {% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}\
    {{ 'Answer with <tool_call>\n{\"name\": ..., \"arguments\": ...}\n</tool_call><|im_end|>\n' }}{% endif %}\
    {% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}\
    {% for call in message.tool_calls or [] %}\
    {{ '<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}\
    {{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes the same model with [`TOOLS_TEMPLATE`].
///
/// # Errors
/// A file cannot be written.
pub fn write_with_tools(folder: &Path, seed: u64) -> Result<()> {
    write(folder, seed)?;
    // Tool descriptions are long, since each byte is a token.
    let mut longer = config(NARROW);
    longer["max_position_embeddings"] = 4096.into();
    fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&longer)?)?;
    Ok(fs::write(folder.join("chat_template.jinja"), TOOLS_TEMPLATE)?)
}

/// Writes the model's Hugging Face folder; the same `seed` gives the same bytes.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<()> {
    write_of(folder, seed, NARROW)
}

/// Writes a model with rows of 256 and 512 weights, of which GGUF's larger blocks consist.
///
/// # Errors
/// A file cannot be written.
pub fn write_wide(folder: &Path, seed: u64) -> Result<()> {
    write_of(folder, seed, WIDE)
}

fn write_of(folder: &Path, seed: u64, widths: Widths) -> Result<()> {
    fs::create_dir_all(folder)?;
    let json = |name: &str, value: &Value| {
        fs::write(folder.join(name), serde_json::to_vec_pretty(value)?).map_err(anyhow::Error::from)
    };
    json("config.json", &config(widths))?;
    json("tokenizer.json", &tokenizer())?;
    json("tokenizer_config.json", &json!({"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}))?;
    json("generation_config.json", &json!({"bos_token_id": 257, "eos_token_id": 258}))?;
    fs::write(folder.join("chat_template.jinja"), TEMPLATE)?;
    weights(&folder.join("model.safetensors"), seed, widths)
}

fn config(Widths { hidden, inner }: Widths) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS, "head_dim": hidden / HEADS, "vocab_size": VOCAB,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 257, "eos_token_id": 258, "torch_dtype": "float32",
    })
}

/// Returns GPT-2's byte alphabet: a printable byte maps to itself, the others map to code points from 256 on.
///
/// Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut spare = 256..;
    (0..256).map(|b| if printable(b) { b } else { spare.next().unwrap_or(0) }).filter_map(char::from_u32).collect()
}

fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        byte_alphabet().into_iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(i, token)| {
            json!({"id": 256 + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

fn weights(path: &Path, seed: u64, widths: Widths) -> Result<()> {
    let mut rng = Pcg64::seed_from_u64(seed);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, shape) in shapes(widths) {
        let norm = shape.len() == 1;
        let width = *shape.last().unwrap_or(&1) as f32;
        let count: usize = shape.iter().product();
        // Uniform with variance 1/width, which keeps activations near 1 through the blocks.
        let value = |rng: &mut Pcg64| if norm { 1.0 } else { (rng.random::<f32>() - 0.5) * (12.0 / width).sqrt() };
        let bytes = (0..count).flat_map(|_| value(&mut rng).to_le_bytes()).collect();
        tensors.insert(name, (shape, bytes));
    }
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (shape, bytes))| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    fs::write(path, safetensors::serialize(views, None)?)?;
    Ok(())
}

fn shapes(Widths { hidden, inner }: Widths) -> Vec<(String, Vec<usize>)> {
    let head = hidden / HEADS;
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![VOCAB, hidden]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HEADS * head, hidden]),
            ("self_attn.k_proj", vec![KEY_HEADS * head, hidden]),
            ("self_attn.v_proj", vec![KEY_HEADS * head, hidden]),
            ("self_attn.o_proj", vec![hidden, HEADS * head]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all
}

/// Returns chat rows whose answer is always [`ANSWER`].
#[must_use]
pub fn rows(count: usize) -> String {
    let row = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("question {i}")},
            {"role": "assistant", "content": ANSWER},
        ]})
        .to_string()
    };
    (0..count).map(row).map(|line| line + "\n").collect()
}

/// The answer of all rows.
pub const ANSWER: &str = "{\"ok\": true}";
