//! Served logits compared with the trainer's: the same base in the same quantization, and the same adapter.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use attune_domain::{
    architecture::PROJECTIONS,
    bytes::Bytes,
    placement::Placement,
    serve::KvCacheDtype,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::{LoraAdapter, Provenance},
    decoder::Decoder,
    served::Hold,
};
use attune_serving::decoding::{
    engine::{self, Limits},
    scores::TokenScore,
};
use tch::{Device, Kind, Tensor};

use super::world::{Ask, World, scored};

/// The tolerance: training adds the correction to the weight, serving adds it to the product; logits are of order 10.
const BAR: f64 = 1e-4;

/// The tolerance where products are computed from codes, with the embedding in 8 bits: the root mean square of the
/// differences, relative to that of the logits.
const CODES_BAR: f64 = 0.05;

/// Returns the folders of the tiny models.
fn tiny() -> Vec<PathBuf> {
    let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/testdata/tiny")).unwrap();
    let mut folders: Vec<PathBuf> = all.map(|folder| folder.unwrap().path()).collect();
    folders.sort_unstable();
    assert!(!folders.is_empty());
    folders
}

/// Returns an adapter as after training: its `lora_B` factors are not zero.
fn stirred(decoder: &Decoder, spec: AdapterSpec) -> LoraAdapter {
    let adapter = decoder.new_adapter(spec, 5).unwrap();
    tch::manual_seed(11);
    for (name, tensor) in adapter.parameters() {
        if name.contains("lora_B") {
            tensor.shallow_clone().copy_(&(Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.1));
        }
    }
    adapter
}

fn largest(apart: &Tensor) -> f64 {
    apart.abs().max().double_value(&[])
}

/// Returns the largest logit differences from the trainer: of the served base, and of the unquantized base.
fn apart(base: &Path, quantization: Quantization, spec: AdapterSpec, scratch: &Path) -> (f64, f64) {
    let trainer = Decoder::load(base, quantization, Placement::default()).unwrap();
    let trained = stirred(&trainer, spec);
    trained.save(scratch, &Provenance::default()).unwrap();
    let written = LoraAdapter::load(scratch, trainer.architecture()).unwrap();
    let sequences: Vec<Vec<u32>> =
        [3_u32, 17, 40].map(|length| (0..length).map(|at| (at * 31 + length * 57 + at * at) % 60).collect()).to_vec();
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let want = trainer.logits(&sequences.concat(), &lengths, Some(&trained)).unwrap(); // [t, v]
    let packed = scratch.join(format!("{quantization}.safetensors"));
    let logits = |quantization, hold| {
        let file = if hold == Hold::Packed { &packed } else { &scratch.join("none.safetensors") };
        let served = Decoder::load_served(base, quantization, Placement::default(), file, hold).unwrap();
        served.served_logits(&sequences, Some(&written)).unwrap()
    };
    // The first load writes the packed weights, and the second reads them.
    let served = Decoder::load_served(base, quantization, Placement::default(), &packed, Hold::Unpacked).unwrap();
    let served = served.served_logits(&sequences, Some(&written)).unwrap();
    assert_eq!(packed.exists(), quantization != Quantization::None);
    assert!(logits(quantization, Hold::Packed).equal(&served), "a gate sees what is served, bit for bit");
    let codes = logits(quantization, Hold::Codes);
    let size = |logits: &Tensor| logits.square().mean(Kind::Float).sqrt().double_value(&[]);
    let far = size(&(&codes - &want)) / size(&want);
    assert!(far <= CODES_BAR, "{} {quantization} from codes: {far}", base.display());
    assert_eq!(codes.equal(&served), quantization == Quantization::None, "an unquantized base has no codes");
    let over_f32 = logits(Quantization::None, Hold::Unpacked);
    (largest(&(&served - &want)), largest(&(&over_f32 - &want)))
}

#[test]
fn figure_served_over_trained_logit_difference() {
    let mut worst: f64 = 0.0;
    for base in tiny() {
        for quantization in Quantization::ALL {
            let lora = AdapterSpec::lora(4, 8.0, &PROJECTIONS);
            for spec in [AdapterSpec { use_dora: true, ..lora.clone() }, lora] {
                let scratch = tempfile::tempdir().unwrap();
                let what = format!("{} {quantization} dora {}", base.display(), spec.use_dora);
                let (served, over_f32) = apart(&base, quantization, spec, scratch.path());
                assert!(served <= BAR, "{what}: {served}");
                if quantization != Quantization::None {
                    assert!(over_f32 > 5.0 * BAR, "{what}: over the f32 base only {over_f32}");
                }
                worst = worst.max(served);
            }
        }
    }
    println!("FIGURE served_over_trained_logit_difference {worst:e}");
}

/// The engine itself: chunked prompts, caches, batches, and a fetched adapter.
#[tokio::test]
async fn the_engine_over_a_quantized_base_scores_as_the_trainer_does() {
    let world = World::new().await;
    for quantization in Quantization::ALL {
        let served = Decoder::load_served(
            &world.base(),
            quantization,
            Placement::default(),
            &world.path(quantization.name()),
            Hold::Unpacked,
        );
        let kv_memory = Bytes::mib(64);
        let engine = engine::start(
            served.unwrap().into(),
            Limits {
                max_batch: 2,
                kv_memory,
                max_wait: Duration::from_secs(60),
                speculation: true,
                kv_cache_dtype: KvCacheDtype::Auto,
            },
        )
        .unwrap()
        .0;
        let adapters = world.adapters(Bytes::mib(64));
        let adapter = world.adapter(3, None).await;
        let trainer = Decoder::load(&world.base(), quantization, Placement::default()).unwrap();
        let trained = LoraAdapter::load(&world.path(&adapter.id.to_string()), trainer.architecture()).unwrap();
        let ask = Ask { scores: Some(3), adapter: Some(adapter), ..Ask::greedy(1, 120, 20) };
        let (drawn, told) = scored(ask.submit(&engine, &adapters).await).await;
        let all: Vec<u32> = ask.prompt.iter().chain(&drawn).copied().collect();
        let logits = trainer.logits(&all, &[all.len()], Some(&trained)).unwrap(); // [t, v]
        for (at, score) in told.iter().enumerate().skip(1) {
            let row = Vec::<f32>::try_from(logits.get(at as i64 - 1)).unwrap();
            let want = TokenScore::new(&row, all[at], 3).logprob.unwrap();
            assert!((score.logprob.unwrap() - want).abs() <= BAR, "{quantization} {at}: {score:?} {want}");
        }
    }
}
