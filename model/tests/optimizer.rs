//! AdamW and clipping against `torch.optim.AdamW` (`testdata/make_adamw.py`), with a save and a load in the middle.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::path::PathBuf;

use attune_domain::placement::Placement;
use attune_model::{
    adapter::LoraAdapter,
    io::{tensor_file::TensorFile, weights},
    optim::{gradients::Gradients, optimizer::AdamW, options::AdamWOptions},
};

fn testdata() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn adapter() -> LoraAdapter {
    let folder = testdata().join("tiny/llama");
    LoraAdapter::load(&folder.join("adapter"), &weights::architecture(&folder).unwrap()).unwrap()
}

#[test]
fn twelve_steps_are_those_of_torch_though_the_state_was_stored_half_way() {
    let file = TensorFile::open(&testdata().join("adamw.tensors")).unwrap();
    let norms = Vec::<f32>::try_from(file.read("norms").unwrap()).unwrap();
    let options = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    let mut adapter = adapter();
    let mut gradients = Gradients::zeros(&adapter).unwrap();
    let mut optimizer = AdamW::new(&adapter, options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (step, norm) in norms.into_iter().enumerate() {
        gradients.clear().unwrap();
        for (name, place) in gradients.named() {
            place.shallow_clone().copy_(&file.read(&format!("{step}.{name}")).unwrap());
        }
        let got = gradients.clip(1.0).unwrap();
        assert!((got / f64::from(norm) - 1.0).abs() < 1e-5, "{got} {norm}");
        optimizer.step(&mut adapter, &gradients, 1e-2 / (step + 1) as f64).unwrap();
        if step == 5 {
            let path = folder.path().join("optimizer.safetensors");
            optimizer.save(&adapter, &path).unwrap();
            optimizer = AdamW::load(&adapter, options, &path).unwrap();
            assert_eq!(optimizer.steps(), 6);
        }
    }
    for (name, got) in adapter.parameters() {
        let want = file.read(&format!("end.{name}")).unwrap();
        // The error of a few f32 roundings in each of twelve steps.
        let off = (got - &want).abs().max().double_value(&[]);
        assert!(off < 1e-6, "{name}: {off}");
    }
}

#[test]
fn the_state_of_another_adapter_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let mut other = adapter().spec().clone();
    other.target_modules.pop();
    let architecture = weights::architecture(&testdata().join("tiny/llama")).unwrap();
    let other = LoraAdapter::new(&architecture, other, 1, Placement::default()).unwrap();
    AdamW::new(&other, AdamWOptions::default()).unwrap().save(&other, &path).unwrap();
    let refused = AdamW::load(&adapter(), AdamWOptions::default(), &path).unwrap_err().to_string();
    assert!(
        refused.starts_with("tensor 'base_model.model.model.layers.0.mlp.down_proj.lora_A.weight.exp_avg' is missing")
    );
}

#[test]
fn the_same_seed_generates_the_same_adapter_and_it_changes_nothing_yet() {
    let architecture = weights::architecture(&testdata().join("tiny/llama")).unwrap();
    let draw = |seed| LoraAdapter::new(&architecture, adapter().spec().clone(), seed, Placement::default()).unwrap();
    let (one, same, other) = (draw(1), draw(1), draw(2));
    for (((name, a), (_, b)), (_, c)) in one.parameters().into_iter().zip(same.parameters()).zip(other.parameters()) {
        assert_eq!(a, b);
        if name.ends_with("lora_A.weight") {
            assert_ne!(a, c);
            let bound = 1.0 / (a.size()[1] as f64).sqrt();
            let largest = a.abs().max().double_value(&[]);
            assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} {bound}");
        } else {
            assert_eq!(a.abs().max().double_value(&[]), 0.0);
        }
    }
}
