//! The split of an effective batch into micro-batches does not change the result.

use std::path::Path;

use attune_domain::{placement::Placement, spec::TrainSpec};
use attune_model::{
    adapter::LoraAdapter,
    batch::{PackedBatch, mask_weights},
    decoder::Decoder,
    optim::gradients::Gradients,
    train::{TrainOptions, loss_and_gradients},
};
use attune_text::{
    model::TextModel,
    rows::{RowPolicy, TrainRow},
};
use attune_trainer::data::{
    rows::read_rows,
    sampler::{MicroBatchLimits, Sampler, micro_batches},
};
use tch::{Kind, Tensor};

use super::{asked, steps, tiny, tiny_world};

fn rows(folder: &Path) -> Vec<TrainRow> {
    let file = folder.join("train.jsonl");
    std::fs::write(&file, tiny::dataset(22)).unwrap();
    let text = TextModel::open(&folder.join("model")).unwrap();
    let policy = RowPolicy::new(&TrainSpec::check(&asked(), 22, 128).unwrap(), 0);
    let mut rows = read_rows(&file, &text, policy, "training_file").unwrap();
    // Every token is trained, so that rows have different weights.
    for row in &mut rows {
        row.examples[0].trained.fill(true);
    }
    rows
}

/// Returns the gradients over one effective batch as one vector, and the mean loss.
fn gradients(decoder: &Decoder, adapter: &LoraAdapter, rows: &[&TrainRow], most: MicroBatchLimits) -> (Tensor, f64) {
    let parts = micro_batches((0..rows.len()).collect(), |row| rows[row].tokens(), most);
    let batch = |part: &Vec<usize>| {
        let mut batch = PackedBatch::new();
        for &row in part {
            let example = &rows[row].examples[0];
            batch.push(&example.ids, &mask_weights(&example.trained)).unwrap();
        }
        batch
    };
    let batches: Vec<_> = parts.iter().map(batch).collect();
    let normaliser = batches.iter().map(PackedBatch::trained_tokens).sum();
    let mut all = Gradients::zeros(adapter).unwrap();
    let mut sum = 0.0;
    for batch in &batches {
        let options = TrainOptions::new(normaliser);
        sum += loss_and_gradients(decoder, adapter, batch, options, &mut all).unwrap().sum;
    }
    let flat: Vec<Tensor> =
        all.named().iter().map(|(_, gradient)| gradient.flatten(0, -1).to_kind(Kind::Double)).collect();
    (Tensor::cat(&flat, 0), sum / normaliser as f64)
}

/// The tolerance is 1e-6 of the gradient's norm. The sums are in f32, whose unit roundoff is 6e-8, and splitting
/// changes only their order.
#[tokio::test(flavor = "multi_thread")]
async fn accumulated_gradients_are_those_of_one_large_batch_the_last_partial_one_included() {
    let (platform, folder) = tiny_world().await;
    let spec = platform.offer(&folder.path().join("model"), &tiny::dataset(22), &asked()).train;
    let placement = Placement::default();
    let decoder = Decoder::load(&folder.path().join("model"), spec.quantization, placement).unwrap();
    let adapter = LoraAdapter::new(decoder.architecture(), spec.adapter, 3, placement).unwrap();
    tiny::stir(&adapter);
    let rows = rows(folder.path());
    let mut sampler = Sampler::new(rows.len(), 8, 7);
    for (step, count) in [(1, 8), (3, 6)] {
        let picked: Vec<&TrainRow> = sampler.batch(step).into_iter().map(|row| &rows[row]).collect();
        assert_eq!(picked.len(), count, "the third batch is what is left of the epoch");
        let whole = MicroBatchLimits { rows: 100, tokens: 10_000 };
        let (one, loss) = gradients(&decoder, &adapter, &picked, whole);
        for most in [
            MicroBatchLimits { rows: 1, ..whole },
            MicroBatchLimits { rows: 3, ..whole },
            MicroBatchLimits { tokens: 25, ..whole },
        ] {
            let (many, many_loss) = gradients(&decoder, &adapter, &picked, most);
            let apart = (&one - &many).norm().double_value(&[]) / one.norm().double_value(&[]);
            assert!(apart < 1e-6, "step {step}, {most:?}: {apart:e}");
            assert!((loss - many_loss).abs() < 1e-6 * loss, "step {step}, {most:?}");
        }
        // Normalizing each micro-batch by its own tokens would give another gradient, which this test detects.
        let (half, _) = gradients(&decoder, &adapter, &picked[..count / 2], whole);
        let (rest, _) = gradients(&decoder, &adapter, &picked[count / 2..], whole);
        let naive = (half + rest) / 2.0;
        assert!((&one - naive).norm().double_value(&[]) > 1e-3 * one.norm().double_value(&[]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_fewer_tokens_at_once_trains_the_same() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec = platform.offer(&model, &tiny::dataset(22), &asked());
    spec.plan.micro_batch_size = 5;
    let (_, together) = platform.run(spec.clone(), &cache).await;
    spec.plan.micro_batch_tokens = 1;
    let (_, alone) = platform.run(spec, &cache).await;
    let (together, alone) = (steps(&together), steps(&alone));
    assert_eq!(together.len(), alone.len());
    for (one, other) in together.iter().zip(&alone) {
        assert_eq!((one.tokens, one.trained_tokens), (other.tokens, other.trained_tokens));
        // Rounding differs, and fifteen Adam steps amplify it.
        assert!((one.train_loss - other.train_loss).abs() < 1e-3, "{} {}", one.train_loss, other.train_loss);
    }
}
