//! Training in half precision, as on a GPU: always on the CPU, and on CUDA with the feature `cuda`, whose tests fail
//! without a device. The factors and their gradients stay in `f32`.
//!
//! Tolerance: `bf16` has eight bits, a relative error of 2⁻⁹ = 0.002 at each rounding; a gradient is a sum of some
//! hundred roundings that mostly cancel. Measured on the tiny models: up to 0.03 of a gradient's norm.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::path::PathBuf;

use attune_domain::{
    architecture::PROJECTIONS,
    placement::Placement,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::LoraAdapter,
    batch::PackedBatch,
    decoder::Decoder,
    noise::Noise,
    optim::{gradients::Gradients, optimizer::AdamW, options::AdamWOptions},
    train::{TrainOptions, loss, loss_and_gradients},
};
use tch::{Device, Kind, Tensor};

fn decoder(family: &str, quantization: Quantization) -> Decoder {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(family);
    Decoder::load(&folder, quantization, Placement::default()).unwrap()
}

fn batch() -> PackedBatch {
    let mut batch = PackedBatch::new();
    let stem: Vec<u32> = (0..20).map(|at| at * 5 % 128).collect();
    for row in 0..3 {
        let ids: Vec<u32> = stem.iter().copied().chain((0..9).map(|at| (at * 11 + row * 7) % 128)).collect();
        batch.push(&ids, &vec![1.0; ids.len()]).unwrap();
    }
    batch
}

fn stirred(decoder: &Decoder, spec: AdapterSpec) -> LoraAdapter {
    let adapter = decoder.new_adapter(spec, 3).unwrap();
    tch::manual_seed(4);
    for (_, factor) in adapter.parameters() {
        let moved = Tensor::randn_like(factor) * 0.05;
        let _ = factor.shallow_clone().g_add_(&moved);
    }
    adapter
}

/// Compares loss and gradients of `device` in `bf16` with those of the CPU in `f32`, then takes a step on `device`.
fn compare(family: &str, quantization: Quantization, spec: AdapterSpec, device: Device) {
    let what = format!("{family} {quantization:?} {spec:?} {device:?}");
    let wide = decoder(family, quantization);
    let adapter = stirred(&wide, spec);
    let half = wide.to(Kind::BFloat16, device).unwrap();
    let noise = Some(Noise { seed: 5, neftune_noise_alpha: 0.0 });
    let options = TrainOptions { noise, checkpointing: true, ..TrainOptions::new(60) };
    let mut want = Gradients::zeros(&adapter).unwrap();
    let want_loss = loss_and_gradients(&wide, &adapter, &batch(), options, &mut want).unwrap();
    let mut there = adapter.to(Kind::Float, device).unwrap();
    let mut got = Gradients::zeros(&there).unwrap();
    let got_loss = loss_and_gradients(&half, &there, &batch(), options, &mut got).unwrap();
    assert!((got_loss.mean() / want_loss.mean() - 1.0).abs() < 0.01, "{what}: {got_loss:?} {want_loss:?}");
    for ((name, got), (_, want)) in got.named().into_iter().zip(want.named()) {
        assert_eq!(got.kind(), Kind::Float);
        let off = (got.to_device(Device::Cpu) - want).norm().double_value(&[]) / want.norm().double_value(&[]);
        assert!(off < 0.06, "{what}: {name} off by {off}");
    }
    let before = loss(&half, Some(&there), &batch()).unwrap().mean();
    let mut optimizer = AdamW::new(&there, AdamWOptions::default()).unwrap();
    optimizer.step(&mut there, &got, 2e-3).unwrap();
    let after = loss(&half, Some(&there), &batch()).unwrap().mean();
    assert!(after < before, "{what}: from {before} to {after}");
}

fn compare_all(device: Device) {
    let nf4 = Quantization::Nf4 { double_quant: true };
    let lora = AdapterSpec::lora(4, 8.0, &PROJECTIONS);
    compare("llama", nf4, lora.clone(), device);
    compare("qwen3", Quantization::Int8, lora.clone(), device);
    compare("qwen2", Quantization::None, AdapterSpec { use_dora: true, ..lora.clone() }, device);
    compare("mistral", nf4, AdapterSpec { lora_dropout: 0.1, ..lora }, device);
}

#[test]
fn half_wide_training_follows_the_wide_one() {
    compare_all(Device::Cpu);
}

#[cfg(feature = "cuda")]
#[test]
fn training_on_a_gpu_follows_the_wide_one() {
    assert!(tch::Cuda::is_available(), "the feature `cuda` needs a CUDA device, and there is none");
    compare_all(Device::Cuda(0));
}
