//! This crate's results on the tiny random models of `testdata/make_tiny.py`, compared with transformers and PEFT.
//!
//! Tolerance: another summation order in two layers of f32 matmuls changes a logit of size 1 to 10 by about 1e-6; a
//! wrong rotation, mask or norm changes it by more than 1e-2.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::{fs, path::PathBuf};

use attune_domain::{placement::Placement, spec::Quantization};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    batch::{PackedBatch, mask_weights},
    decoder::{Decoder, Step},
    io::tensor_file::TensorFile,
    optim::gradients::Gradients,
    train::{TrainOptions, loss, loss_and_gradients},
};
use tch::{Kind, Tensor};

/// Returns the names of all tiny models.
fn families() -> Vec<String> {
    let folders = fs::read_dir(folder("")).unwrap();
    let mut names: Vec<String> = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert!(!names.is_empty());
    names
}

fn folder(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(family)
}

fn golden(family: &str) -> TensorFile {
    TensorFile::open(&folder(family).join("golden.tensors")).unwrap()
}

fn ids(family: &str) -> Vec<u32> {
    let ids = Vec::<i64>::try_from(golden(family).read("ids").unwrap()).unwrap();
    ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
}

fn decoder(family: &str) -> Decoder {
    Decoder::load(&folder(family), Quantization::None, Placement::default()).unwrap()
}

fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.size(), want.size(), "{what}");
    let largest = (got - want).abs().max().double_value(&[]);
    assert!(got.allclose(want, 1e-4, 1e-5, false), "{what}: off by up to {largest}");
}

#[test]
fn logits_of_every_family_are_those_of_transformers() {
    for family in families() {
        let (decoder, ids) = (decoder(&family), ids(&family));
        let logits = decoder.logits(&ids, &[ids.len()], None).unwrap();
        assert_close(&logits, &golden(&family).read("logits").unwrap(), &family);
    }
}

#[test]
fn a_cache_changes_no_logit_however_the_tokens_are_cut() {
    for family in families() {
        let (decoder, ids) = (decoder(&family), ids(&family));
        let want = golden(&family).read("logits").unwrap();
        let mut cache = decoder.new_cache(1).unwrap();
        let mut at = 0;
        for count in [13, 1, 1, 10, 1, 14] {
            let logits = decoder.prefill(&ids[at..at + count], &mut cache, None).unwrap();
            at += count;
            assert_close(&logits, &want.get(at as i64 - 1), &format!("{family} after {at} tokens"));
        }
        assert_eq!(cache.len(), ids.len());
        // A shared prefix and a truncated cache continue as if there had been no other tokens.
        let mut prefix = cache.share_prefix(20);
        cache.truncate(20);
        for cache in [&mut cache, &mut prefix] {
            assert_close(&decoder.prefill(&ids[20..], cache, None).unwrap(), &want.get(39), &family);
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for family in families() {
        let (decoder, ids) = (decoder(&family), ids(&family));
        let want = golden(&family).read("logits").unwrap();
        let packed = [&ids[..7], &ids[..40], &ids[..1]].concat();
        let logits = decoder.logits(&packed, &[7, 40, 1], None).unwrap();
        assert_close(&logits.narrow(0, 0, 7), &want.narrow(0, 0, 7), &family);
        assert_close(&logits.narrow(0, 7, 40), &want, &family);
        assert_close(&logits.narrow(0, 47, 1), &want.narrow(0, 0, 1), &family);
    }
}

#[test]
fn one_step_serves_base_and_adapter_at_once() {
    let (decoder, ids, golden) = (decoder("llama"), ids("llama"), golden("llama"));
    let adapter = LoraAdapter::load(&folder("llama").join("adapter"), decoder.architecture()).unwrap();
    let (base, tuned) = (golden.read("logits").unwrap(), golden.read("adapter_logits").unwrap());
    assert_close(&decoder.logits(&ids, &[40], Some(&adapter)).unwrap(), &tuned, "adapter, whole");
    assert!(!base.allclose(&tuned, 1e-1, 1e-1, false), "the fixture's adapter does something");

    let mut caches: Vec<_> = (0..4).map(|_| decoder.new_cache(64).unwrap()).collect();
    let counts = [12, 5, 30, 12];
    let who = [Some(&adapter), None, Some(&adapter), None];
    for (cache, (&count, adapter)) in caches.iter_mut().zip(counts.iter().zip(who)) {
        let _ = decoder.prefill(&ids[..count - 1], cache, adapter).unwrap();
    }
    let tokens: Vec<u32> = counts.iter().map(|&count| ids[count - 1]).collect();
    let mut steps: Vec<Step<'_>> = caches
        .iter_mut()
        .zip(&tokens)
        .zip(who)
        .map(|((cache, id), adapter)| Step { ids: std::slice::from_ref(id), cache, adapter, every: false })
        .collect();
    let logits = decoder.forward_cached(&mut steps).unwrap(); // [4, v]
    for (row, (&count, adapter)) in counts.iter().zip(who).enumerate() {
        let want = if adapter.is_some() { &tuned } else { &base };
        assert_close(&logits.get(row as i64), &want.get(count as i64 - 1), &format!("row {row}"));
    }
}

#[test]
fn loss_and_gradients_are_those_of_peft() {
    let (decoder, ids, golden) = (decoder("llama"), ids("llama"), golden("llama"));
    let adapter = LoraAdapter::load(&folder("llama").join("adapter"), decoder.architecture()).unwrap();
    let trained = Vec::<bool>::try_from(golden.read("trained").unwrap()).unwrap();
    let mut batch = PackedBatch::new();
    batch.push(&ids, &mask_weights(&trained)).unwrap();
    for checkpointing in [false, true] {
        let mut gradients = Gradients::zeros(&adapter).unwrap();
        let options = TrainOptions { checkpointing, normaliser: 50, share_prefixes: false, noise: None };
        let got = loss_and_gradients(&decoder, &adapter, &batch, options, &mut gradients).unwrap();
        let want = golden.read("loss_sum").unwrap().double_value(&[0]);
        assert!((got.sum / want - 1.0).abs() < 1e-5, "{} {want}", got.sum);
        assert_eq!(got.tokens, trained.iter().filter(|&&t| t).count() as u64);
        assert_eq!(loss(&decoder, Some(&adapter), &batch).unwrap(), got);
        let named = gradients.named();
        assert_eq!(named.len(), golden.names().iter().filter(|name| name.starts_with("gradient.")).count());
        for (name, gradient) in named {
            let want = golden.read(&format!("gradient.{name}")).unwrap();
            // Relative to the tensor's own size: single entries near zero are sums that cancel.
            let off = (gradient - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
            assert!(off < 1e-4, "{name}: {off}");
        }
    }
}

#[test]
fn a_saved_adapter_is_loaded_as_it_was() {
    let decoder = decoder("llama");
    let adapter = LoraAdapter::load(&folder("llama").join("adapter"), decoder.architecture()).unwrap();
    assert_eq!((adapter.spec().rank, adapter.scale()), (4, 3.0));
    let saved = tempfile::tempdir().unwrap();
    adapter.save(saved.path(), &Provenance { base_model: "tiny".into() }).unwrap();
    let again = LoraAdapter::load(saved.path(), decoder.architecture()).unwrap();
    assert_eq!(again.spec(), adapter.spec());
    for ((name, a), (same, b)) in adapter.parameters().into_iter().zip(again.parameters()) {
        assert_eq!(name, same);
        assert_eq!(a, b);
        assert_eq!(a.kind(), Kind::Float);
    }
    let theirs = TensorFile::open(&folder("llama").join("adapter/adapter_model.safetensors")).unwrap();
    let ours = TensorFile::open(&saved.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(ours.names(), theirs.names());
}

#[test]
fn an_adapter_of_another_base_is_refused_by_name() {
    let other = decoder("qwen3");
    let refused = LoraAdapter::load(&folder("llama").join("adapter"), other.architecture()).unwrap_err().to_string();
    assert!(
        refused.starts_with("tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight'"),
        "{refused}"
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let decoder = decoder("llama");
    let refused = |result: Result<Tensor, attune_model::error::ModelError>| result.unwrap_err().to_string();
    assert_eq!(refused(decoder.logits(&[128], &[1], None)), "token id 128 is outside the vocabulary of 128");
    assert_eq!(refused(decoder.logits(&[1, 2], &[1], None)), "sequences of [1] tokens do not make up 2");
    let mut cache = decoder.new_cache(1).unwrap();
    assert_eq!(refused(decoder.prefill(&[], &mut cache, None)), "a sequence without new tokens");
    assert_eq!(cache.len(), 0);
    let folder = folder("llama");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut load = |field: &str, value: serde_json::Value| {
        config[field] = value;
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        Decoder::load(copy.path(), Quantization::None, Placement::default()).unwrap_err().to_string()
    };
    assert!(load("num_hidden_layers", 3.into()).starts_with("tensor 'model.layers.2."));
    assert!(load("num_hidden_layers", 1.into()).starts_with("tensor 'model.layers.1."));
    let wrong = load("vocab_size", 127.into());
    assert_eq!(wrong, "tensor 'model.embed_tokens.weight' has the shape [128, 64], and [127, 64] is needed");
}
