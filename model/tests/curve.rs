//! Fifty optimizer steps over an NF4 base, compared with PEFT, bitsandbytes and transformers
//! (`testdata/make_curve.py`): each step's loss, gradient norm and learning rate, and the final factors.
//!
//! Tolerance: the fixture requires 1e-3 in every loss. Sums in another order of f32 change a loss by about 1e-6, and a
//! step's difference carries over to the next: the largest measured difference was 1.9e-5.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use attune_domain::{
    placement::Placement,
    spec::{Quantization, Schedule},
};
use attune_model::{
    adapter::LoraAdapter,
    batch::{LossSum, PackedBatch, mask_weights},
    decoder::Decoder,
    io::tensor_file::TensorFile,
    optim::{
        gradients::Gradients,
        optimizer::AdamW,
        options::AdamWOptions,
        schedule::{self, LrSchedule},
    },
    train::{TrainOptions, loss_and_gradients},
};

/// The tolerance of a loss, in nats, and a hundredth of the relative tolerance of a gradient norm.
const TOLERANCE: f64 = 1e-4;

/// The fixture of one model.
struct Curve {
    file: TensorFile,
    rows: Vec<(Vec<u32>, Vec<bool>)>,
    order: Vec<Vec<usize>>,
}

impl Curve {
    fn open(name: &str) -> Self {
        let file = TensorFile::open(&folder(name).join("curve.tensors")).unwrap();
        let ids = Vec::<i64>::try_from(file.read("ids").unwrap()).unwrap();
        let trained = Vec::<bool>::try_from(file.read("trained").unwrap()).unwrap();
        let (mut rows, mut at) = (Vec::new(), 0);
        for length in Vec::<i64>::try_from(file.read("lengths").unwrap()).unwrap() {
            let part = at..at + length as usize;
            rows.push((ids[part.clone()].iter().map(|&id| id as u32).collect(), trained[part.clone()].to_vec()));
            at = part.end;
        }
        let order = file.read("order").unwrap();
        let per_step = order.size()[1] as usize;
        let order = Vec::<i64>::try_from(order.flatten(0, -1)).unwrap();
        let order = order.chunks(per_step).map(|step| step.iter().map(|&row| row as usize).collect()).collect();
        Self { file, rows, order }
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        Vec::try_from(self.file.read(name).unwrap()).unwrap()
    }

    fn told<T: FromStr>(&self, name: &str) -> T
    where
        T::Err: std::fmt::Debug,
    {
        self.file.metadata()[name].parse().unwrap()
    }

    fn batch(&self, rows: &[usize]) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for &row in rows {
            let (ids, trained) = &self.rows[row];
            batch.push(ids, &mask_weights(trained)).unwrap();
        }
        batch
    }
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/curve").join(name)
}

/// Trains as the fixture's script did, compares each step with it, and returns the factors.
fn follow(curve: &Curve, name: &str, base: &Path, checkpointing: bool) -> LoraAdapter {
    // Steps this small have little work to distribute, and threads that wait for each other would spin while other
    // tests run.
    tch::set_num_threads(1);
    let decoder = Decoder::load(base, Quantization::Nf4 { double_quant: true }, Placement::default()).unwrap();
    let mut adapter = LoraAdapter::load(&folder(name).join("adapter"), decoder.architecture()).unwrap();
    let options = AdamWOptions { weight_decay: curve.told("weight_decay"), ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(&adapter, options).unwrap();
    let mut gradients = Gradients::zeros(&adapter).unwrap();
    let (micro, steps, warmup) = (curve.told("micro"), curve.told("steps"), curve.told("warmup"));
    let (losses, norms, rates) = (curve.numbers("losses"), curve.numbers("norms"), curve.numbers("rates"));
    assert_eq!((curve.order.len() as u64, losses.len() as u64), (steps, steps));
    for (step, rows) in curve.order.iter().enumerate() {
        let batches: Vec<PackedBatch> = rows.chunks(micro).map(|part| curve.batch(part)).collect();
        let normaliser = batches.iter().map(PackedBatch::trained_tokens).sum();
        gradients.clear().unwrap();
        let mut all = LossSum::default();
        for batch in &batches {
            let options = TrainOptions { checkpointing, ..TrainOptions::new(normaliser) };
            all += loss_and_gradients(&decoder, &adapter, batch, options, &mut gradients).unwrap();
        }
        let off = (all.mean() - losses[step]).abs();
        assert!(off < TOLERANCE, "{name}, step {step}: a loss of {}, not {}: off by {off}", all.mean(), losses[step]);
        let norm = gradients.clip(curve.told("max_grad_norm")).unwrap();
        let off = (norm / norms[step] - 1.0).abs();
        assert!(off < 100.0 * TOLERANCE, "{name}, step {step}: a norm of {norm}, not {}: off by {off}", norms[step]);
        let lr_schedule =
            LrSchedule { schedule: Schedule::Cosine, peak: curve.told("peak"), warmup, steps, num_cycles: 1 };
        let rate = schedule::learning_rate(lr_schedule, step as u64);
        assert!((rate - rates[step]).abs() < 1e-15, "{name}, step {step}: a rate of {rate}, not {}", rates[step]);
        optimizer.step(&mut adapter, &gradients, rate).unwrap();
    }
    adapter
}

#[test]
fn fifty_steps_of_tiny_models_are_those_of_peft() {
    for (name, checkpointing) in [("llama", false), ("llama", true), ("qwen3", true)] {
        let curve = Curve::open(name);
        let base = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(name);
        let adapter = follow(&curve, name, &base, checkpointing);
        for (factor, got) in adapter.parameters() {
            let want = curve.file.read(&format!("end.{factor}")).unwrap();
            let off = (got - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
            assert!(off < 1e-3, "{name}, {factor}: off by {off}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test reads its configuration from the environment")]
#[test]
fn fifty_steps_of_a_real_model_are_those_of_peft() {
    let cache = std::env::var("ATTUNE_CACHE")
        .map_or_else(|_| PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/attune"), PathBuf::from);
    let base = cache.join("models/SmolLM2-135M-Instruct");
    assert!(base.join("model.safetensors").exists(), "{} is missing: scripts/test makes it", base.display());
    follow(&Curve::open("smollm2"), "smollm2", &base, false);
}
