//! A base in the blocks of a GGUF file, as an import keeps them, compared with the same numbers in `f32`.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::{collections::HashMap, fs, path::Path};

use attune_domain::{
    architecture::{PROJECTIONS, gguf_blocks::BlockKind},
    placement::Placement,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::LoraAdapter,
    decoder::Decoder,
    io::{
        tensor_file::write_tensors,
        weights::{Weights, architecture, expected},
    },
    quant::gguf::GgufBlocks,
    served::Hold,
};
use half::f16;
use tch::{Device, Kind, Tensor};

const CONFIGS: [&str; 2] = [
    r#"{"model_type": "llama", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 304,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#,
    r#"{"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 304,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}"#,
];

/// The relative root mean square of the differences that rounded activations may make: a few ten-thousandths in each
/// product.
const ALLOWED: f64 = 0.005;

/// Returns the kind of a tensor's blocks; `None`: it is in `f32`. `gate_proj` and `up_proj` have several kinds, and
/// the last layer's `v_proj` none, so its q, k and v are computed in `f32`.
fn kind(name: &str) -> Option<BlockKind> {
    let ends = |part: &str| name.ends_with(&format!("{part}.weight"));
    if name.ends_with(".bias") || name.contains("norm") || name.contains("2.self_attn.v_proj") {
        None
    } else if ends("embed_tokens") || ends("o_proj") {
        Some(BlockKind::Q8Zero)
    } else if ends("up_proj") || ends("down_proj") {
        Some(BlockKind::Q4One)
    } else {
        Some(BlockKind::Q4Zero)
    }
}

/// Quantizes numbers to blocks, by the largest of each or by its range.
fn encoded(kind: BlockKind, numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in numbers.chunks(32) {
        let largest = block.iter().fold(0f32, |most, number| most.max(number.abs()));
        let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), &n| (low.min(n), high.max(n)));
        let (scale, min, shift) = match kind {
            BlockKind::Q4Zero => (largest / 7.0, 0.0, 8.0),
            BlockKind::Q4One => ((high - low) / 15.0, low, 0.0),
            BlockKind::Q8Zero => (largest / 127.0, 0.0, 0.0),
        };
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        if kind == BlockKind::Q4One {
            bytes.extend(f16::from_f32(min).to_le_bytes());
        }
        let code = |number: f32| ((number - min) / scale + shift).round();
        if kind == BlockKind::Q8Zero {
            bytes.extend(block.iter().map(|&number| (code(number) as i8).to_le_bytes()[0]));
        } else {
            let code = |number: f32| code(number).clamp(0.0, 15.0) as u8;
            bytes.extend((0..16).map(|at| code(block[at]) | code(block[at + 16]) << 4));
        }
    }
    bytes
}

/// Writes a model with random weights twice: in blocks, and with the numbers of these in `f32`.
fn bases(folder: &Path, config: &str) {
    let [in_blocks, dense] = ["blocks", "dense"].map(|name| folder.join(name));
    for path in [&in_blocks, &dense] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("config.json"), config).unwrap();
    }
    tch::manual_seed(71);
    let (mut kept, mut plain) = (Vec::new(), Vec::new());
    for (name, shape) in expected(&architecture(&dense).unwrap()) {
        let spread = Tensor::randn(shape.as_slice(), (Kind::Float, Device::Cpu));
        let width = *shape.last().unwrap() as f64;
        let made = if shape.len() == 1 { spread * 0.1 + 1.0 } else { spread * (1.0 / width.sqrt()) };
        let Some(kind) = kind(&name) else {
            kept.push((name.clone(), made.shallow_clone()));
            plain.push((name, made));
            continue;
        };
        let (outputs, inputs) = made.size2().unwrap();
        let bytes = encoded(kind, &Vec::<f32>::try_from(made.flatten(0, -1)).unwrap());
        kept.push((name.clone(), Tensor::from_slice(&bytes).view((outputs, -1))));
        let blocks = GgufBlocks::new(&name, kind, (outputs as usize, inputs as usize), bytes).unwrap();
        plain.push((name, blocks.dequantize().unwrap()));
    }
    for (path, tensors) in [(in_blocks, kept), (dense, plain)] {
        let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        write_tensors(&path.join("model.safetensors"), &borrowed, HashMap::new()).unwrap();
    }
}

fn served(folder: &Path, name: &str, quantization: Quantization, hold: Hold) -> Decoder {
    let packed = folder.join(format!("{name}-{quantization}.packed"));
    Decoder::load_served(&folder.join(name), quantization, Placement::default(), &packed, hold).unwrap()
}

fn ids(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|at| (at * 31 + seed * 57 + at * at) % 304).collect()
}

fn size(numbers: &Tensor) -> f64 {
    numbers.square().mean(Kind::Float).sqrt().double_value(&[])
}

fn adapter(decoder: &Decoder) -> LoraAdapter {
    let adapter = decoder.new_adapter(AdapterSpec::lora(4, 8.0, &PROJECTIONS), 3).unwrap();
    for (name, tensor) in adapter.parameters() {
        if name.contains("lora_B") {
            let noise = Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.05;
            tensor.shallow_clone().copy_(&noise);
        }
    }
    adapter
}

#[test]
fn training_has_the_numbers_of_the_blocks_in_every_quantization() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        bases(folder.path(), config);
        for quantization in Quantization::ALL {
            let logits = |name: &str| {
                let decoder = Decoder::load(&folder.path().join(name), quantization, Placement::default()).unwrap();
                assert_eq!(decoder.has_codes(), quantization != Quantization::None);
                decoder.logits(&ids(1, 30), &[30], None).unwrap()
            };
            assert!(logits("blocks").equal(&logits("dense")), "{quantization}");
        }
    }
}

#[test]
fn serving_from_the_blocks_has_nearly_the_logits_of_f32_with_and_without_an_adapter() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        bases(folder.path(), config);
        let of = |name, hold| served(folder.path(), name, Quantization::None, hold);
        let dense = of("dense", Hold::Codes);
        let (packed, codes) = (of("blocks", Hold::Packed), of("blocks", Hold::Codes));
        assert!(!dense.has_codes() && packed.has_codes() && codes.has_codes());
        let (adapter, prompts) = (adapter(&dense), [ids(1, 5), ids(2, 40), ids(3, 2)]);
        for adapter in [None, Some(&adapter)] {
            let want = dense.served_logits(&prompts, adapter).unwrap();
            assert!(packed.served_logits(&prompts, adapter).unwrap().equal(&want));
            assert!(of("blocks", Hold::Unpacked).served_logits(&prompts, adapter).unwrap().equal(&want));
            let got = codes.served_logits(&prompts, adapter).unwrap();
            let far = size(&(&got - &want)) / size(&want);
            assert!(far > 0.0 && far < ALLOWED, "{far}");
        }
        let mut later = of("blocks", Hold::Packed);
        later.compute_from_codes().unwrap();
        let logits = |decoder: &Decoder| decoder.served_logits(&prompts, None).unwrap();
        assert!(logits(&later).equal(&logits(&codes)), "a gate sees what is served");
    }
}

#[test]
fn a_base_of_blocks_is_as_large_as_its_file_and_another_quantization_keeps_the_embedding() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        bases(folder.path(), config);
        let bytes =
            |name: &str, quantization, hold| served(folder.path(), name, quantization, hold).weight_bytes().unwrap();
        let model = architecture(&folder.path().join("blocks")).unwrap();
        let weights = Weights::open(&folder.path().join("blocks"), &model).unwrap();
        let (mut packed, mut tiled) = (0, 0);
        for (name, shape) in expected(&model) {
            let numbers = shape.iter().product::<i64>() as usize;
            let in_f32 =
                name.contains("2.self_attn") && ["q_proj", "k_proj", "v_proj"].iter().any(|of| name.contains(of));
            match weights.blocks(&name).unwrap() {
                Some(blocks) if !in_f32 => {
                    packed += blocks.bytes();
                    // Of several kinds: 8 bits, with a scale and a minimum.
                    let is_mixed = name.contains("gate_proj") || name.contains("up_proj");
                    tiled += if is_mixed { numbers * 9 / 8 } else { blocks.bytes() };
                }
                _ if !name.contains("norm") => (packed, tiled) = (packed + numbers * 4, tiled + numbers * 4),
                _ => {}
            }
        }
        assert_eq!(bytes("blocks", Quantization::None, Hold::Packed), packed);
        assert_eq!(bytes("blocks", Quantization::None, Hold::Codes), tiled);
        let int8 = |name| bytes(name, Quantization::Int8, Hold::Codes);
        // The embedding has 8.5 bits in both: codes, and a scale of 4 bytes per 64 or of 2 per 32. `lm_head` has 4.5.
        let lm_head = if model.tie_word_embeddings { 0 } else { 304 * 128 };
        assert_eq!(int8("dense") - int8("blocks"), lm_head / 2);
    }
}

#[test]
fn blocks_of_another_size_and_scales_that_are_not_finite_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    bases(folder.path(), CONFIGS[0]);
    let blocks = folder.path().join("blocks");
    let refusal = |change: &dyn Fn(Tensor) -> Tensor| {
        let file = attune_model::io::tensor_file::TensorFile::open(&blocks.join("model.safetensors")).unwrap();
        let changed = folder.path().join("changed");
        let _ = fs::remove_dir_all(&changed);
        fs::create_dir(&changed).unwrap();
        fs::copy(blocks.join("config.json"), changed.join("config.json")).unwrap();
        let read = |name: String| {
            let tensor = file.read(&name).unwrap();
            let tensor = if name.ends_with("0.mlp.down_proj.weight") { change(tensor) } else { tensor };
            (name, tensor)
        };
        let tensors: Vec<(String, Tensor)> = file.names().into_iter().map(read).collect();
        let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        write_tensors(&changed.join("model.safetensors"), &borrowed, HashMap::new()).unwrap();
        let packed = folder.path().join("none");
        let load = Decoder::load_served(&changed, Quantization::None, Placement::default(), &packed, Hold::Codes);
        load.unwrap_err().to_string()
    };
    let shorter = refusal(&|tensor| tensor.narrow(1, 0, 119).contiguous());
    assert!(shorter.contains("0.mlp.down_proj.weight' has the shape [128, 119]"), "{shorter}");
    let infinite = refusal(&|tensor| {
        tensor.get(3).narrow(0, 20, 2).copy_(&Tensor::from_slice(&[0u8, 0x7c]));
        tensor
    });
    assert_eq!(infinite, "tensor 'model.layers.0.mlp.down_proj.weight' has NaN or infinite values");
}
