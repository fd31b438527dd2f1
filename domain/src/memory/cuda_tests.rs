//! Tests of the estimates for a CUDA device: sums worked out by hand for the shapes of Llama 3, and the terms that an
//! option adds.

use crate::{
    architecture::Architecture,
    bytes::Bytes,
    memory::{
        allocator::rounding,
        cuda::CudaEstimate,
        work::{BatchSplit, Workload},
    },
    spec::{
        Requested, TrainSpec,
        request::{AdapterFields, QuantizationFields, TrainerFields},
    },
};

const LLAMA_8B: &str = include_str!("../../testdata/llama3_8b.json");
const LLAMA_70B: &str = include_str!("../../testdata/llama3_70b.json");

/// One row of up to 2048 tokens in a forward pass, with checkpointing.
const SMALLEST: BatchSplit = BatchSplit { micro_batch_size: 1, checkpointing: true };

fn with_work<T>(config: &str, asked: &Requested, f: impl FnOnce(Workload<'_>) -> T) -> T {
    let architecture = Architecture::from_config_json(config.as_bytes()).unwrap();
    let train = TrainSpec::check(asked, 360, 8192).unwrap();
    f(Workload { architecture: &architecture, train: &train, longest_row: 2048 })
}

fn estimate(config: &str, asked: &Requested, split: BatchSplit) -> CudaEstimate {
    with_work(config, asked, |work| CudaEstimate::of(work, split))
}

/// Returns the bytes of a term of the device's peak; 0: the estimate has no such term.
fn term(estimate: &CudaEstimate, name: &str) -> u64 {
    estimate.device.terms.iter().find(|(known, _)| known == name).map_or(0, |(_, bytes)| bytes.0)
}

#[test]
fn the_terms_of_a_70b_job_are_those_worked_out_by_hand() {
    let found = estimate(LLAMA_70B, &Requested::default(), SMALLEST);
    // A block: q and o 8192 x 8192, k and v 1024 x 8192, gate, up and down 28672 x 8192.
    let block: u64 = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192;
    assert_eq!(term(&found, "NF4 base"), block * 80 * 4127 / 8000);
    assert_eq!(term(&found, "embeddings"), 2 * 128_256 * 8192 * 2);
    // Rank 16: each factor has 16 values for each input or output of its projection.
    let factors: u64 = 80 * 16 * (2 * 16_384 + 2 * 9216 + 3 * 36_864);
    assert_eq!((term(&found, "adapter"), term(&found, "gradients")), (factors * 4, factors * 4));
    assert_eq!(term(&found, "optimizer"), factors * 8);
    // 512 rows: in f32, and their gradient in bf16. Gate and up are unpacked as one, in bf16.
    assert_eq!(term(&found, "logits"), 512 * 128_256 * (4 + 2));
    assert_eq!(term(&found, "unpacked weight"), 2 * 28_672 * 8192 * 2);
    // The inputs of all blocks but the last.
    assert_eq!(term(&found, "kept activations"), 79 * 2048 * 8192 * 2);
    // At the head: input, q, k and v, output and sums of 64 heads in f32, residual, gate and up of the last block; six
    // tensors of the hidden width; cosine and sine.
    let block = 8192 + 8192 + 2 * 1024 + 8192 + 2 * 64 + 8192 + 2 * 28_672;
    let activations = 2048 * (block + 6 * 8192 + 128) * 2;
    assert_eq!(term(&found, "activations"), activations);
    // All large tensors are multiples of 2 MiB; a tenth of the activations is holes.
    assert_eq!(term(&found, "allocator"), Bytes::mib(22).0 + activations / 100 * 10);
    assert_eq!((term(&found, "CUDA context"), term(&found, "cuBLAS workspace")), (512 << 20, 32 << 20));
    assert_eq!(found.device.peak.to_string(), "44.7 GiB");
    assert!(found.device.breakdown().starts_with("NF4 base 32.9 GiB, embeddings 3.9 GiB, kept activations 2.5 GiB"));
}

#[test]
fn the_margin_is_of_what_is_not_known_to_the_byte_and_shards_share_only_that() {
    let found = estimate(LLAMA_8B, &Requested::default(), SMALLEST);
    let names = ["NF4 base", "embeddings", "adapter", "gradients", "optimizer"];
    let states: u64 = names.iter().map(|name| term(&found, name)).sum();
    let rest = found.device.peak.0 - states;
    assert_eq!(found.needed(1).0, states + rest + rest / 100 * 10);
    // Two of 32 blocks are gathered; NCCL's buffers take 256 MiB.
    let each = rest + 2 * (term(&found, "NF4 base") / 32) + (256 << 20);
    assert_eq!(found.needed(4).0, states.div_ceil(4) + each + each / 100 * 10);
}

#[test]
fn without_checkpointing_each_block_keeps_its_activations_and_no_scores() {
    let asked = Requested::default();
    let kept = estimate(LLAMA_8B, &asked, BatchSplit { checkpointing: false, ..SMALLEST });
    // Input, q, k and v, output, sums of 32 heads in f32; residual, gate and up.
    let block = 4096 + 4096 + 2 * 1024 + 4096 + 2 * 32 + 4096 + 2 * 14_336;
    assert_eq!(term(&kept, "kept activations"), 31 * 2048 * block * 2);
    let recomputed = estimate(LLAMA_8B, &asked, SMALLEST);
    assert_eq!(term(&recomputed, "kept activations"), 31 * 2048 * 4096 * 2);
    assert!(kept.device.peak > recomputed.device.peak);
}

#[test]
fn the_base_and_its_name_are_those_of_the_quantization() {
    let of = |name: &str| {
        let quantization = QuantizationFields { r#type: Some(name.into()), double_quant: None };
        estimate(LLAMA_8B, &Requested { quantization, ..Requested::default() }, SMALLEST)
    };
    let block: u64 = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14_336 * 4096;
    let outputs: u64 = 4096 + 2 * 1024 + 4096 + 2 * 14_336 + 4096;
    assert_eq!(term(&of("int8"), "int8 base"), 32 * (block + 4 * outputs));
    assert_eq!(term(&of("none"), "bf16 base"), 32 * block * 2);
    assert!(of("none").needed(1) > of("int8").needed(1) && of("int8").needed(1) > of("nf4").needed(1));
    // Two GPUs share the base.
    assert!(of("none").needed(2) < of("none").needed(1));
}

#[test]
fn dora_dropout_and_8_bit_moments_change_the_estimate() {
    let plain = estimate(LLAMA_8B, &Requested::default(), SMALLEST);
    let trainer = TrainerFields { optimizer: Some("adamw_8bit".into()), ..TrainerFields::default() };
    let small = estimate(LLAMA_8B, &Requested { trainer, ..Requested::default() }, SMALLEST);
    // All factors have whole blocks of 256 values: a byte a value and a scale in f32 a block, twice.
    let factors = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432);
    assert_eq!(term(&plain, "optimizer") - term(&small, "optimizer"), factors * 8 - 2 * (factors + factors / 256 * 4));
    let with = |adapter| estimate(LLAMA_8B, &Requested { adapter, ..Requested::default() }, SMALLEST).device.peak;
    let plain = plain.device.peak;
    assert!(with(AdapterFields { use_dora: Some(true), ..AdapterFields::default() }) > plain);
    assert!(with(AdapterFields { lora_dropout: Some(0.1), ..AdapterFields::default() }) > plain);
}

#[test]
fn tensors_that_are_no_multiples_of_2_mib_are_rounded_up() {
    // 700 tokens of 8192 numbers in bf16: 10.9 MiB, for which the allocator reserves 12 MiB. The codes of the
    // projections are multiples of 2 MiB.
    with_work(LLAMA_70B, &Requested::default(), |work| {
        let each = (12 << 20) - 700 * 8192 * 2;
        assert_eq!(rounding(work, 700, SMALLEST), Bytes((22 << 20) + 79 * each));
        assert_eq!(rounding(work, 600, SMALLEST), Bytes::mib(22));
    });
}

#[test]
fn the_host_needs_its_libraries_the_pinned_copy_of_the_embedding_and_what_is_read() {
    let host = estimate(LLAMA_70B, &Requested::default(), SMALLEST).host;
    // An embedding of 1.96 GiB is pinned in 2 GiB. While the adapter and the moments are copied, 2370 MiB of factors.
    let factors: u64 = 80 * 16 * (2 * 16_384 + 2 * 9216 + 3 * 36_864);
    assert_eq!(host.peak, Bytes((145 + 1203 + 2048) << 20) + Bytes(3 * 4 * factors));
    // With few factors, the embedding itself.
    let adapter = AdapterFields { rank: Some(1), ..AdapterFields::default() };
    let host = estimate(LLAMA_70B, &Requested { adapter, ..Requested::default() }, SMALLEST).host;
    assert_eq!(host.peak, Bytes((145 + 1203 + 2048) << 20) + Bytes(128_256 * 8192 * 2));
}
