//! A base that computes from its codes, as a replica serves it, compared with the same base in `f32`.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::{collections::HashMap, fs, path::Path};

use attune_domain::{
    architecture::PROJECTIONS,
    placement::Placement,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::LoraAdapter,
    decoder::{Decoder, Step},
    io::{
        tensor_file::write_tensors,
        weights::{architecture, expected},
    },
    nn::kv_cache::KvCache,
    served::Hold,
};
use tch::{Device, Kind, Tensor};

/// A model whose rows are all whole blocks, with a window in some layers of the second.
const CONFIGS: [&str; 2] = [
    r#"{"model_type": "llama", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#,
    r#"{"model_type": "mistral", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300, "sliding_window": 7,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}"#,
];

const NF4: Quantization = Quantization::Nf4 { double_quant: true };

/// Writes a model with random weights.
fn base(folder: &Path, config: &str) {
    fs::write(folder.join("config.json"), config).unwrap();
    tch::manual_seed(61);
    let made = |(name, shape): (String, Vec<i64>)| {
        let width = *shape.last().unwrap() as f64;
        let spread = Tensor::randn(shape.as_slice(), (Kind::Float, Device::Cpu));
        let is_norm = shape.len() == 1;
        (name, if is_norm { spread * 0.1 + 1.0 } else { spread * (1.0 / width.sqrt()) })
    };
    let tensors: Vec<(String, Tensor)> = expected(&architecture(folder).unwrap()).into_iter().map(made).collect();
    let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    write_tensors(&folder.join("model.safetensors"), &borrowed, HashMap::new()).unwrap();
}

fn load(folder: &Path, quantization: Quantization, hold: Hold) -> Decoder {
    let packed = folder.join(format!("{quantization}.packed"));
    Decoder::load_served(folder, quantization, Placement::default(), &packed, hold).unwrap()
}

fn ids(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|at| (at * 31 + seed * 57 + at * at) % 300).collect()
}

/// Reads the prompts of different lengths into caches, and decodes two tokens each, all sequences in each step
/// together. Returns the logits of all steps, per sequence.
fn decode(decoder: &Decoder, prompts: &[Vec<u32>], adapter: Option<&LoraAdapter>) -> Vec<Vec<Tensor>> {
    let mut caches: Vec<KvCache> = prompts.iter().map(|_| decoder.new_cache(4).unwrap()).collect();
    let mut logits: Vec<Vec<Tensor>> = prompts.iter().map(|_| Vec::new()).collect();
    let mut step = |tokens: &[&[u32]]| {
        let steps = tokens.iter().zip(&mut caches);
        let mut steps: Vec<Step<'_>> = steps.map(|(ids, cache)| Step { ids, cache, adapter, every: false }).collect();
        let made = decoder.forward_cached(&mut steps).unwrap();
        for (row, logits) in logits.iter_mut().enumerate() {
            logits.push(made.get(row as i64));
        }
    };
    // Some sequences read while others decode: the first tokens of each prompt, then single tokens and the rest.
    let (first, rest): (Vec<&[u32]>, Vec<&[u32]>) = prompts
        .iter()
        .enumerate()
        .map(|(at, ids)| ids.split_at(if at.is_multiple_of(2) { ids.len() - 1 } else { 1 }))
        .unzip();
    step(&first);
    step(&rest);
    for token in [7, 200] {
        step(&vec![[token].as_slice(); prompts.len()]);
    }
    logits
}

fn size(numbers: &Tensor) -> f64 {
    numbers.square().mean(Kind::Float).sqrt().double_value(&[])
}

#[test]
fn a_sequence_gets_the_same_bits_alone_and_with_others_and_with_any_number_of_threads() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        base(folder.path(), config);
        for quantization in [NF4, Quantization::Int8] {
            let decoder = load(folder.path(), quantization, Hold::Codes);
            let prompts = [ids(1, 5), ids(2, 40), ids(3, 2), ids(4, 17), ids(5, 9)];
            let together = decode(&decoder, &prompts, None);
            let before = tch::get_num_threads();
            for threads in [1, 2, 5] {
                tch::set_num_threads(threads);
                for at in [0, 2, 4] {
                    let alone = decode(&decoder, &prompts[at..=at], None);
                    for (step, (alone, together)) in alone[0].iter().zip(&together[at]).enumerate() {
                        assert!(alone.equal(together), "{quantization}, prompt {at}, step {step}, {threads} threads");
                    }
                }
            }
            tch::set_num_threads(before);
        }
    }
}

/// Speculative decoding verifies several tokens in one step.
#[test]
fn several_tokens_in_one_step_have_the_bits_of_single_tokens() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        base(folder.path(), config);
        for quantization in [NF4, Quantization::Int8] {
            let decoder = load(folder.path(), quantization, Hold::Codes);
            let adapter = decoder.new_adapter(AdapterSpec::lora(4, 8.0, &PROJECTIONS), 3).unwrap();
            for (name, tensor) in adapter.parameters() {
                if name.contains("lora_B") {
                    tensor.shallow_clone().copy_(&Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)));
                }
            }
            let all = ids(6, 46);
            for adapter in [None, Some(&adapter)] {
                let steps = |lengths: &[usize]| {
                    let mut cache = decoder.new_cache(4).unwrap();
                    let mut logits = Vec::new();
                    for &length in lengths {
                        let ids = &all[cache.len()..cache.len() + length];
                        let mut step = [Step { ids, cache: &mut cache, adapter, every: true }];
                        logits.push(decoder.forward_cached(&mut step).unwrap());
                    }
                    Tensor::cat(&logits[1..], 0) // without those of the prompt
                };
                let single = steps(&[&[30][..], &[1; 16][..]].concat());
                for lengths in [&[30, 16][..], &[30, 1, 5, 2, 8][..]] {
                    assert!(
                        steps(lengths).equal(&single),
                        "{quantization} {lengths:?}, adapter: {}",
                        adapter.is_some()
                    );
                }
            }
        }
    }
}

#[test]
fn the_logits_are_nearly_those_of_f32_with_and_without_an_adapter() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        base(folder.path(), config);
        for quantization in [NF4, Quantization::Int8] {
            let (codes, dense) =
                (load(folder.path(), quantization, Hold::Codes), load(folder.path(), quantization, Hold::Unpacked));
            let adapter = dense.new_adapter(AdapterSpec::lora(4, 8.0, &PROJECTIONS), 3).unwrap();
            for (name, tensor) in adapter.parameters() {
                if name.contains("lora_B") {
                    let noise = Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.05;
                    tensor.shallow_clone().copy_(&noise);
                }
            }
            let prompts = [ids(1, 5), ids(2, 40)];
            let mut answers = Vec::new();
            for adapter in [None, Some(&adapter)] {
                let (got, want) = (decode(&codes, &prompts, adapter), decode(&dense, &prompts, adapter));
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    let far = size(&(got - want)) / size(want);
                    assert!(far > 0.0 && far < 0.03, "{quantization}: {far}");
                }
                answers.push(want);
            }
            assert!(size(&(&answers[0][1][3] - &answers[1][1][3])) > 0.05 * size(&answers[0][1][3]));
        }
    }
}

#[test]
fn a_base_of_codes_is_a_quarter_as_large_and_an_unquantized_one_is_the_same() {
    for config in CONFIGS {
        let folder = tempfile::tempdir().unwrap();
        base(folder.path(), config);
        let bytes = |quantization, hold| load(folder.path(), quantization, hold).weight_bytes().unwrap();
        let dense = bytes(Quantization::None, Hold::Unpacked);
        assert_eq!(bytes(NF4, Hold::Unpacked), dense);
        assert!(bytes(NF4, Hold::Codes) * 4 < dense, "{} {dense}", bytes(NF4, Hold::Codes));
        assert!(bytes(Quantization::Int8, Hold::Codes) * 10 < dense * 3);
        let decoders = [Hold::Codes, Hold::Unpacked].map(|hold| load(folder.path(), Quantization::None, hold));
        let [codes, dense] = decoders.map(|decoder| decoder.logits(&ids(1, 30), &[30], None).unwrap());
        assert!(codes.equal(&dense));
    }
}
