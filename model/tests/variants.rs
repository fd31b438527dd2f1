//! Adapters other than plain LoRA, their optimizers, and quantized bases, compared with PEFT, bitsandbytes and
//! transformers (`testdata/make_variants.py`, `make_int8.py`, `make_adamw8bit.py`), and serving compared with training.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::path::PathBuf;

use attune_domain::{
    architecture::PROJECTIONS,
    placement::Placement,
    spec::{AdapterSpec, Quantization, Schedule},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    batch::{PackedBatch, mask_weights},
    decoder::{Decoder, Step},
    io::tensor_file::TensorFile,
    optim::{
        gradients::Gradients,
        optimizer::AdamW,
        options::AdamWOptions,
        schedule::{LrSchedule, learning_rate},
    },
    quant::int8::Int8,
    train::{TrainOptions, loss_and_gradients},
};
use tch::{Kind, Tensor};

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn fixture(name: &str) -> TensorFile {
    TensorFile::open(&testdata(name)).unwrap()
}

const IDS: [u32; 11] = [5, 90, 17, 3, 3, 120, 66, 41, 8, 77, 1];

fn decoder(family: &str, quantization: Quantization) -> Decoder {
    let folder = testdata("tiny").join(family);
    Decoder::load(&folder, quantization, Placement::default()).unwrap()
}

/// Returns an adapter after one optimizer step on random gradients.
fn moved(decoder: &Decoder, spec: AdapterSpec, seed: u64) -> LoraAdapter {
    let mut adapter = decoder.new_adapter(spec, seed).unwrap();
    let gradients = Gradients::zeros(&adapter).unwrap();
    tch::manual_seed(seed as i64);
    for (_, gradient) in gradients.named() {
        gradient.shallow_clone().copy_(&Tensor::randn_like(gradient));
    }
    AdamW::new(&adapter, AdamWOptions::default()).unwrap().step(&mut adapter, &gradients, 0.05).unwrap();
    adapter
}

fn specs() -> Vec<AdapterSpec> {
    let lora = |targets: &[&str]| AdapterSpec::lora(3, 5.0, targets);
    vec![
        lora(&PROJECTIONS),
        AdapterSpec { use_rslora: true, ..lora(&["q_proj", "v_proj"]) },
        AdapterSpec { use_dora: true, ..lora(&PROJECTIONS) },
        AdapterSpec { use_dora: true, use_rslora: true, ..lora(&["k_proj", "o_proj", "up_proj"]) },
    ]
}

#[test]
fn serving_answers_as_training_computes_for_every_kind_in_one_batch() {
    for family in ["llama", "qwen2"] {
        let decoder = decoder(family, Quantization::None);
        let adapters: Vec<LoraAdapter> =
            specs().into_iter().enumerate().map(|(seed, spec)| moved(&decoder, spec, seed as u64)).collect();
        let mut caches: Vec<_> = (0..=adapters.len()).map(|_| decoder.new_cache(16).unwrap()).collect();
        let chosen = || adapters.iter().map(Some).chain([None]);
        let mut logits = Tensor::new();
        for part in [&IDS[..7], &IDS[7..8], &IDS[8..]] {
            let mut steps: Vec<Step<'_>> = caches
                .iter_mut()
                .zip(chosen())
                .map(|(cache, adapter)| Step { ids: part, cache, adapter, every: false })
                .collect();
            logits = decoder.forward_cached(&mut steps).unwrap();
        }
        let mut answers: Vec<Tensor> = Vec::new();
        for (row, adapter) in chosen().enumerate() {
            let want = decoder.logits(&IDS, &[IDS.len()], adapter).unwrap().get(IDS.len() as i64 - 1);
            assert!(logits.get(row as i64).allclose(&want, 1e-4, 1e-5, false), "{family}, adapter {row}");
            assert!(!answers.iter().any(|other| other.allclose(&want, 1e-3, 1e-3, false)), "two adapters say the same");
            answers.push(want);
        }
    }
}

#[test]
fn every_kind_is_read_again_as_it_was_written() {
    let decoder = decoder("llama", Quantization::None);
    for spec in specs() {
        let adapter = moved(&decoder, spec, 4);
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path(), &Provenance { base_model: "tiny".into() }).unwrap();
        let again = LoraAdapter::load(folder.path(), decoder.architecture()).unwrap();
        assert_eq!((again.spec(), again.scale()), (adapter.spec(), adapter.scale()));
        for ((name, a), (_, b)) in adapter.parameters().into_iter().zip(again.parameters()) {
            assert_eq!(a, b, "{name}");
        }
    }
}

#[test]
fn a_new_magnitude_adapter_changes_nothing() {
    for quantization in [Quantization::None, Quantization::Int8, Quantization::Nf4 { double_quant: true }] {
        let decoder = decoder("qwen2", quantization);
        let spec = AdapterSpec { use_dora: true, ..AdapterSpec::lora(2, 4.0, &PROJECTIONS) };
        let adapter = decoder.new_adapter(spec, 9).unwrap();
        let [with, without] =
            [Some(&adapter), None].map(|adapter| decoder.logits(&IDS, &[IDS.len()], adapter).unwrap());
        assert!(with.allclose(&without, 1e-5, 1e-5, false), "{quantization:?}");
    }
}

#[test]
fn a_step_that_would_spoil_a_factor_changes_nothing() {
    let decoder = decoder("llama", Quantization::None);
    for eight_bit in [false, true] {
        let mut adapter = moved(&decoder, AdapterSpec::lora(64, 5.0, &PROJECTIONS), 1);
        let before = adapter.snapshot().unwrap();
        let gradients = Gradients::zeros(&adapter).unwrap();
        let (last, _) = gradients.named().pop().unwrap();
        for (name, gradient) in gradients.named() {
            let _ = gradient.shallow_clone().fill_(if name == last { f64::NAN } else { 1.0 });
        }
        let mut optimizer = AdamW::new(&adapter, AdamWOptions { eight_bit, ..AdamWOptions::default() }).unwrap();
        let refused = optimizer.step(&mut adapter, &gradients, 0.1).unwrap_err().to_string();
        assert!(refused.contains(&last), "{refused}");
        assert_eq!(optimizer.steps(), 0);
        for ((name, a), (_, b)) in adapter.parameters().into_iter().zip(before.parameters()) {
            assert_eq!(a, b, "{name}");
        }
        assert_eq!(adapter.not_finite().unwrap(), None);
    }
}

/// The moments in 8 bits lose precision, but training takes the same course: two runs over the same gradients end close
/// to each other.
#[test]
fn moments_in_eight_bits_go_the_same_way_in_a_third_of_the_memory_and_are_stored() {
    let decoder = decoder("llama", Quantization::None);
    let spec = AdapterSpec::lora(64, 5.0, &PROJECTIONS);
    let run = |eight_bit: bool, stored: bool| {
        let mut adapter = decoder.new_adapter(spec.clone(), 2).unwrap();
        let options = AdamWOptions { eight_bit, ..AdamWOptions::default() };
        let mut optimizer = AdamW::new(&adapter, options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for step in 0..20 {
            tch::manual_seed(step % 4);
            let gradients = Gradients::zeros(&adapter).unwrap();
            for (_, gradient) in gradients.named() {
                gradient.shallow_clone().copy_(&Tensor::randn_like(gradient));
            }
            optimizer.step(&mut adapter, &gradients, 1e-2).unwrap();
            if stored && step == 9 {
                let path = folder.path().join("optimizer.safetensors");
                optimizer.save(&adapter, &path).unwrap();
                optimizer = AdamW::load(&adapter, options, &path).unwrap();
            }
        }
        (adapter, optimizer.bytes())
    };
    let ((full, full_bytes), (packed, bytes), (stored, _)) = (run(false, false), run(true, false), run(true, true));
    assert!(bytes * 3 < full_bytes, "{bytes} of {full_bytes}");
    for (((name, full), (_, packed)), (_, stored)) in
        full.parameters().into_iter().zip(packed.parameters()).zip(stored.parameters())
    {
        assert_eq!(packed, stored, "{name}");
        let off = (full - packed).square().mean(Kind::Double).sqrt().double_value(&[]);
        // Twenty steps of at most 0.01 each.
        assert!(off < 0.02, "{name}: {off}");
    }
}

#[test]
fn weights_that_were_packed_before_give_the_same_decoder_and_a_torn_file_is_made_again() {
    let folder = testdata("tiny/qwen2");
    let place = tempfile::tempdir().unwrap();
    let kinds =
        [Quantization::Int8, Quantization::Nf4 { double_quant: true }, Quantization::Nf4 { double_quant: false }];
    for (at, quantization) in kinds.into_iter().enumerate() {
        let cache = place.path().join(format!("packed/{at}.safetensors"));
        let load = || Decoder::load_cached(&folder, quantization, Placement::default(), Some(&cache)).unwrap();
        let logits = |decoder: &Decoder| decoder.logits(&IDS, &[IDS.len()], None).unwrap();
        let want = logits(&decoder("qwen2", quantization));
        assert_eq!(logits(&load()), want);
        let written = std::fs::read(&cache).unwrap();
        assert_eq!(logits(&load()), want, "read again");
        std::fs::write(&cache, &written[..written.len() / 2]).unwrap();
        assert_eq!(logits(&load()), want, "over a torn file");
        assert_eq!(std::fs::read(&cache).unwrap().len(), written.len());
        // A file with another quantization is not used for this one.
        let other = kinds[(at + 1) % kinds.len()];
        let other = Decoder::load_cached(&folder, other, Placement::default(), Some(&cache)).unwrap();
        assert_ne!(logits(&other), want);
        assert_eq!(std::fs::read_dir(cache.parent().unwrap()).unwrap().count(), at + 1, "nothing else is left");
    }
}

/// Reads the fixture's token IDs and loss mask.
fn variants_batch(file: &TensorFile) -> (Vec<u32>, Vec<bool>) {
    let ids = Vec::<i64>::try_from(file.read("ids").unwrap()).unwrap().into_iter().map(|id| id as u32).collect();
    (ids, Vec::try_from(file.read("trained").unwrap()).unwrap())
}

#[test]
fn dora_and_rslora_are_those_of_peft() {
    let (file, decoder) = (fixture("variants/variants.tensors"), decoder("llama", Quantization::None));
    let (ids, trained) = variants_batch(&file);
    for name in ["dora", "rslora"] {
        let adapter = LoraAdapter::load(&testdata("variants").join(name), decoder.architecture()).unwrap();
        let logits = decoder.logits(&ids, &[ids.len()], Some(&adapter)).unwrap();
        let want = file.read(&format!("{name}.logits")).unwrap();
        assert!(logits.allclose(&want, 1e-4, 1e-5, false), "{name}");
    }
    let adapter = LoraAdapter::load(&testdata("variants/dora"), decoder.architecture()).unwrap();
    let mut batch = PackedBatch::new();
    batch.push(&ids, &mask_weights(&trained)).unwrap();
    let mut gradients = Gradients::zeros(&adapter).unwrap();
    let loss = loss_and_gradients(&decoder, &adapter, &batch, TrainOptions::new(50), &mut gradients).unwrap();
    let want = file.read("dora.loss_sum").unwrap().double_value(&[0]);
    assert!((loss.sum / want - 1.0).abs() < 1e-5, "{} {want}", loss.sum);
    for (name, got) in gradients.named() {
        let want = file.read(&format!("dora.gradient.{name}")).unwrap();
        let off = (got - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
        assert!(off < 1e-4, "{name}: {off}");
    }
    let fresh = decoder.new_adapter(adapter.spec().clone(), 0).unwrap();
    for (name, magnitude) in fresh.parameters().into_iter().filter(|(name, _)| name.ends_with("magnitude_vector")) {
        let want = file.read(&format!("dora.fresh.{name}")).unwrap();
        assert!(magnitude.allclose(&want, 1e-6, 1e-7, false), "{name}");
    }
}

#[test]
fn loraplus_moves_each_factor_at_the_rate_that_peft_gives_it() {
    let (file, decoder) = (fixture("variants/variants.tensors"), decoder("llama", Quantization::None));
    let mut adapter = LoraAdapter::load(&testdata("variants/dora"), decoder.architecture()).unwrap();
    let options = AdamWOptions { weight_decay: 0.1, loraplus_lr_ratio: 16.0, ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(&adapter, options).unwrap();
    for times in [1.0, 2.0] {
        let gradients = Gradients::zeros(&adapter).unwrap();
        for (name, gradient) in gradients.named() {
            let theirs = file.read(&format!("dora.gradient.{name}")).unwrap();
            gradient.shallow_clone().copy_(&(theirs * times));
        }
        optimizer.step(&mut adapter, &gradients, 1e-2).unwrap();
    }
    for (name, got) in adapter.parameters() {
        let want = file.read(&format!("loraplus.{name}")).unwrap();
        assert!(got.allclose(&want, 1e-5, 1e-6, false), "{name}");
    }
}

#[test]
fn restarts_are_those_of_transformers() {
    let file = fixture("variants/variants.tensors");
    let mut seen = 0;
    for name in file.names().into_iter().filter(|name| name.starts_with("restarts.")) {
        let parts: Vec<u64> = name.split('.').skip(1).map(|part| part.parse().unwrap()).collect();
        let [steps, warmup, cycles] = parts[..] else { panic!("{name}") };
        let schedule = Schedule::CosineWithRestarts;
        let lr_schedule = LrSchedule { schedule, peak: 1.0, warmup, steps, num_cycles: cycles as u32 };
        for (step, want) in Vec::<f64>::try_from(file.read(&name).unwrap()).unwrap().into_iter().enumerate() {
            let got = learning_rate(lr_schedule, step as u64);
            assert!((got - want).abs() < 1e-12, "{name}, step {step}: {got} {want}");
        }
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn eight_bits_a_weight_are_those_of_bitsandbytes_bit_for_bit() {
    let file = fixture("int8.tensors");
    let names: Vec<String> =
        file.names().iter().filter_map(|name| name.strip_suffix(".weight").map(str::to_owned)).collect();
    assert_eq!(names.len(), 6);
    for name in names {
        let packed = Int8::quantize(&file.read(&format!("{name}.weight")).unwrap()).unwrap();
        let (codes, scales) = packed.tensors();
        assert_eq!(*codes, file.read(&format!("{name}.codes")).unwrap(), "{name}");
        assert_eq!(scales.flatten(0, -1), file.read(&format!("{name}.scales")).unwrap(), "{name}");
        assert_eq!(packed.dequantize().unwrap(), file.read(&format!("{name}.dequantized")).unwrap(), "{name}");
    }
    let zeros = Int8::quantize(&Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu))).unwrap();
    assert_eq!(zeros.dequantize().unwrap().abs().max().double_value(&[]), 0.0);
}
