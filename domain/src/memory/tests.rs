//! Tests of the estimates: what each setting adds to a peak, and the properties of all estimates.

use proptest::prelude::*;

use super::*;
use crate::{
    architecture::Architecture,
    spec::{
        Auto, Requested, TrainSpec,
        request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
    },
};

const SMOLLM2: &str = include_str!("../../testdata/smollm2.json");

fn with_work<T>(batch: i64, longest_row: u64, f: impl FnOnce(Workload<'_>) -> T) -> T {
    asking(&batches_of(batch, TrainerFields::default()), longest_row, f)
}

fn batches_of(rows: i64, trainer: TrainerFields) -> Requested {
    let hyperparameters = Hyperparameters { batch_size: Auto(Some(rows)), ..Hyperparameters::default() };
    Requested { hyperparameters, trainer, ..Requested::default() }
}

fn with_adapter(adapter: AdapterFields) -> Requested {
    Requested { adapter, ..Requested::default() }
}

fn with_trainer(trainer: TrainerFields) -> Requested {
    Requested { trainer, ..Requested::default() }
}

fn asking<T>(asked: &Requested, longest_row: u64, f: impl FnOnce(Workload<'_>) -> T) -> T {
    let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
    let train = TrainSpec::check(asked, 360, 8192).unwrap();
    f(Workload { architecture: &architecture, train: &train, longest_row })
}

/// Returns the bytes of a term of the smallest split; 0: the estimate has no such term.
fn term(asked: &Requested, name: &str) -> u64 {
    let terms = asking(asked, 128, smallest).terms;
    terms.into_iter().find(|(known, _)| known == name).map_or(0, |(_, bytes)| bytes.0)
}

#[test]
fn the_terms_add_up_to_the_peak() {
    with_work(8, 128, |work| {
        let estimate = training(work, Placement::default(), BatchSplit { micro_batch_size: 8, checkpointing: false });
        assert_eq!(estimate.terms.iter().map(|(_, bytes)| *bytes).sum::<Bytes>(), estimate.peak);
        // 106 M projection weights at 4.127 bits, 28 M embedding weights in f32.
        assert!(estimate.breakdown().contains("base 52.2 MiB"), "{}", estimate.breakdown());
        assert!(estimate.breakdown().contains("embeddings 108.0 MiB"), "{}", estimate.breakdown());
    });
}

#[test]
fn with_plenty_of_memory_the_micro_batch_is_as_large_as_its_tokens_allow() {
    let plan = with_work(16, 128, |work| plan(work, Bytes::mib(1 << 20), 2)).unwrap().0;
    assert_eq!((plan.micro_batch_size, plan.checkpointing), (8, false));
    let plan = with_work(4, 128, |work| super::plan(work, Bytes::mib(1 << 20), 2)).unwrap().0;
    assert_eq!((plan.micro_batch_size, plan.checkpointing), (4, false));
}

#[test]
fn when_memory_is_short_checkpointing_comes_before_a_smaller_micro_batch() {
    with_work(8, 128, |work| {
        let whole = training(work, Placement::default(), BatchSplit { micro_batch_size: 8, checkpointing: false });
        let (short, _) = plan(work, Bytes(whole.needed().0 - 1), 2).unwrap();
        assert_eq!((short.micro_batch_size, short.checkpointing), (8, true));
        let (shorter, _) = plan(work, Bytes(with_margin(short.predicted_peak).0 - 1), 2).unwrap();
        assert!(shorter.micro_batch_size < 8);
    });
}

#[test]
fn a_plan_leaves_the_margin_free() {
    assert_eq!(with_margin(Bytes(1000)), Bytes(1000 + 10 * MARGIN_PERCENT));
    with_work(8, 128, |work| {
        let (found, estimate) = plan(work, Bytes::mib(1 << 20), 2).unwrap();
        assert_eq!((found.predicted_peak, estimate.needed()), (estimate.peak, with_margin(estimate.peak)));
        assert_eq!(plan(work, estimate.needed(), 2).unwrap().0, found);
        assert_ne!(plan(work, Bytes(estimate.needed().0 - 1), 2).unwrap().0, found);
    });
}

#[test]
fn when_nothing_fits_the_smallest_need_is_reported() {
    with_work(8, 8192, |work| {
        assert_eq!(plan(work, Bytes::mib(100), 2).unwrap_err(), smallest(work));
    });
}

#[test]
fn the_logits_are_those_of_one_chunk_of_the_loss() {
    let logits = |rows: u64| {
        let estimate = with_work(8, rows, smallest);
        estimate.terms.into_iter().find(|(name, _)| name == "logits").map(|(_, bytes)| bytes.0)
    };
    assert_eq!(logits(128), Some(128 * 49_152 * 4));
    assert_eq!(logits(512), Some(512 * 49_152 * 4));
    assert_eq!(logits(4096), logits(512));
}

/// 30 blocks; rank-16 factors of seven projections: 4,884,480 weights; 5184 outputs per block.
const LORA: u64 = 4_884_480;

#[test]
fn each_option_costs_its_own_term_and_no_other() {
    let plain = Requested::default();
    assert_eq!(term(&plain, "adapter"), LORA * 4);
    assert_eq!(term(&plain, "gradients"), LORA * 4);
    assert_eq!(term(&plain, "optimizer"), LORA * 8);
    assert_eq!(term(&plain, "range test"), 0);

    let dora = with_adapter(AdapterFields { use_dora: Some(true), ..AdapterFields::default() });
    assert_eq!(term(&dora, "adapter"), (LORA + 30 * 5184) * 4);

    let auto = TrainerFields { learning_rate: Some(Auto(None)), ..TrainerFields::default() };
    assert_eq!(term(&with_trainer(auto), "range test"), LORA * 12);

    let patient =
        TrainerFields { early_stopping_patience: Some(2), eval_every_steps: Some(5), ..TrainerFields::default() };
    assert_eq!(asking(&with_trainer(patient), 128, smallest), asking(&plain, 128, smallest));
}

#[test]
fn eight_bit_moments_take_two_bytes_a_weight_and_two_scales_a_block() {
    let asked = TrainerFields { optimizer: Some("adamw_8bit".into()), ..TrainerFields::default() };
    let asked = with_trainer(asked);
    // The second factors of k and v have 16 x 192 values: they keep `f32`. The others are whole blocks of 256.
    let small = 30 * 2 * 16 * 192;
    assert_eq!(term(&asked, "optimizer"), small * 8 + (LORA - small) * 2 + (LORA - small) / 256 * 8);
    let target_modules = Some(vec!["k_proj".into()]);
    let ragged = AdapterFields { rank: Some(30), target_modules, ..AdapterFields::default() };
    let ragged = Requested { adapter: ragged, ..asked };
    let optimizer = asking(&ragged, 128, |work| sizes::optimizer(work.architecture, work.train));
    // 30 x 192 and 30 x 576 values: 23 blocks and 68 blocks, the last of each incomplete.
    assert_eq!(optimizer.0, 30 * (2 * 30 * (192 + 576) + 2 * 4 * (23 + 68)));
}

#[test]
fn an_int8_base_takes_a_byte_a_weight_and_a_scale_an_output() {
    let quantization = QuantizationFields { r#type: Some("int8".into()), double_quant: None };
    let asked = Requested { quantization, ..Requested::default() };
    assert_eq!(term(&asked, "base"), 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576) + 30 * 5184 * 4);
    let nf4 = Requested::default();
    assert!(term(&asked, "base") > term(&nf4, "base"));
}

#[test]
fn what_the_job_requests_is_not_chosen() {
    let plenty = Bytes::mib(1 << 20);
    let asked = TrainerFields {
        micro_batch_size: Some(Auto(Some(16))),
        gradient_checkpointing: Some(Auto(Some(true))),
        ..TrainerFields::default()
    };
    let asked = batches_of(16, asked);
    asking(&asked, 128, |work| {
        let (plan, estimate) = plan(work, plenty, 2).unwrap();
        assert_eq!((plan.micro_batch_size, plan.micro_batch_tokens, plan.checkpointing), (16, 2048, true));
        assert_eq!(super::plan(work, Bytes(estimate.needed().0 - 1), 2).unwrap_err(), estimate);
    });
    let open = TrainerFields { gradient_checkpointing: Some(Auto(Some(false))), ..TrainerFields::default() };
    let open = batches_of(16, open);
    asking(&open, 128, |work| {
        let (first, estimate) = plan(work, plenty, 2).unwrap();
        assert_eq!((first.micro_batch_size, first.checkpointing), (8, false));
        let (less, _) = plan(work, Bytes(estimate.needed().0 - 1), 2).unwrap();
        assert_eq!((less.micro_batch_size, less.checkpointing), (4, false));
    });
}

/// Returns the estimate of one row of a model that differs from SmolLM2 in these keys.
fn of_model(keys: &[(&str, u64)], asked: &Requested, row: u64) -> MemoryEstimate {
    let mut config: serde_json::Value = serde_json::from_str(SMOLLM2).unwrap();
    for (key, value) in keys {
        config[*key] = (*value).into();
    }
    let architecture = Architecture::from_config_json(config.to_string().as_bytes()).unwrap();
    let train = TrainSpec::check(asked, 360, 8192).unwrap();
    smallest(Workload { architecture: &architecture, train: &train, longest_row: row })
}

fn has(estimate: &MemoryEstimate, name: &str) -> bool {
    estimate.terms.iter().any(|(known, _)| known == name)
}

#[test]
fn the_estimate_is_that_of_the_phase_with_the_highest_peak() {
    let plain = Requested::default();
    // The conversion of a huge embedding, for an adapter of rank 1 and few tokens.
    let rank = with_adapter(AdapterFields { rank: Some(1), ..AdapterFields::default() });
    let loading = of_model(&[("vocab_size", 200_000), ("hidden_size", 2304)], &rank, 8);
    assert!(has(&loading, "loading") && !has(&loading, "gradients"), "{}", loading.breakdown());
    // The gate's logits, where the embedding is narrow.
    let narrow = [("vocab_size", 200_000), ("hidden_size", 18), ("intermediate_size", 64), ("num_hidden_layers", 2)];
    let gate = of_model(&narrow, &rank, 8);
    assert!(has(&gate, "logits") && !has(&gate, "gradients"), "{}", gate.breakdown());
    // Few tokens of a wide model: the copies of a weight. Many tokens of a small vocabulary: the activations.
    let weight = of_model(&[("vocab_size", 1024), ("intermediate_size", 9216)], &plain, 64);
    assert!(has(&weight, "weight copies") && !has(&weight, "gradient buffers"), "{}", weight.breakdown());
    let rows = of_model(&[("vocab_size", 1024)], &plain, 4096);
    assert!(!has(&rows, "weight copies") && has(&rows, "kept activations"), "{}", rows.breakdown());
}

#[test]
fn dora_and_dropout_need_more_where_the_weight_or_the_activations_decide() {
    let peak = |adapter: AdapterFields, row| {
        of_model(&[("vocab_size", 1024), ("intermediate_size", 9216)], &with_adapter(adapter), row).peak
    };
    let dora = || AdapterFields { use_dora: Some(true), ..AdapterFields::default() };
    let dropout = || AdapterFields { lora_dropout: Some(0.1), ..AdapterFields::default() };
    assert!(peak(dora(), 64) > peak(AdapterFields::default(), 64));
    assert!(peak(dropout(), 4096) > peak(AdapterFields::default(), 4096));
}

proptest! {
    /// A plan never exceeds its limit, and more memory never results in a smaller micro-batch.
    #[test]
    fn plans_fit_and_grow_with_the_memory(
        batch in 1_i64..64,
        longest in 1_u64..4096,
        limit in 300_u64..8192,
        more in 0_u64..8192,
    ) {
        with_work(batch, longest, |work| {
            if let Ok((small, estimate)) = plan(work, Bytes::mib(limit), 2) {
                prop_assert!(estimate.needed() <= Bytes::mib(limit));
                let (large, _) = plan(work, Bytes::mib(limit + more), 2).unwrap();
                prop_assert!(large.micro_batch_size >= small.micro_batch_size);
                prop_assert!(u64::from(large.micro_batch_size) <= work.train.hyperparameters.batch_size.into());
            }
            Ok(())
        })?;
    }
}
