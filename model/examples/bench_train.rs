//! Benchmarks of this crate on a Hugging Face folder; each mode prints one JSON line. `scripts/bench-train` runs it
//! next to the peer, `scripts/train-cost` for many shapes.
//!
//! `random`: training steps over random token IDs, with every position trained, like `bench/peer_peft.py` without data.
//! `decode`: prefill of a prompt, and decoding of tokens for 1 and for 8 sequences.
//! `matmul`: libtorch's f32 matmul rate, the reference for the others.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use attune_domain::{
    architecture::PROJECTIONS,
    placement::Placement,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::LoraAdapter,
    allocator,
    batch::PackedBatch,
    decoder::{Decoder, Step},
    kernels::matmul::mm,
    optim::{gradients::Gradients, optimizer::AdamW, options::AdamWOptions},
    train::{TrainOptions, loss_and_gradients},
};
use clap::{Args, Parser, ValueEnum};
use tch::{Device, Kind, Tensor};

/// The width of the square matrices of `matmul`.
const MATMUL: i64 = 2048;

#[derive(Parser)]
#[command(about = "Measures training and decoding; prints one JSON line")]
enum Mode {
    /// Run training steps over random token IDs.
    Random(Random),
    /// Prefill prompts and decode.
    Decode {
        /// A Hugging Face folder.
        folder: PathBuf,
    },
    /// Multiply matrices of 2048 x 2048 in f32.
    Matmul,
}

#[derive(Args)]
struct Random {
    /// A Hugging Face folder.
    folder: PathBuf,
    /// Sequences per step.
    #[arg(long, default_value_t = 4)]
    sequences: usize,
    /// Tokens per sequence.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Sequences per micro-batch; by default, all of a step.
    #[arg(long)]
    micro: Option<usize>,
    /// Number of steps; the first is not measured.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Keep only each block's input for the backward.
    #[arg(long)]
    checkpointing: bool,
    /// Quantization of the base.
    #[arg(long, value_enum, default_value_t = Base::Nf4)]
    base: Base,
    /// Rank of the adapter, on all seven projections.
    #[arg(long, default_value_t = 16)]
    rank: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Base {
    /// NF4 with double quantization.
    Nf4,
    /// NF4 without double quantization.
    Nf4Single,
    /// 8 bits per number, a scale per row.
    Int8,
    /// No quantization.
    None,
}

fn main() -> Result<()> {
    let mode = Mode::parse();
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from(threads)?);
    match mode {
        Mode::Random(options) => random(&options, threads),
        Mode::Decode { folder } => {
            let decoder = Decoder::load(&folder, Quantization::Nf4 { double_quant: true }, Placement::default())?;
            decode(&decoder, &LoraAdapter::new(decoder.architecture(), spec(16), 0, Placement::default())?)
        }
        Mode::Matmul => matmul(threads),
    }
}

fn spec(rank: u32) -> AdapterSpec {
    AdapterSpec::lora(rank, 2.0 * f64::from(rank), &PROJECTIONS)
}

fn random(options: &Random, threads: usize) -> Result<()> {
    ensure!(options.steps > 1, "--steps: {} is not allowed; it must be 2 or more", options.steps);
    let start = Instant::now();
    let quantization = match options.base {
        Base::Nf4 => Quantization::Nf4 { double_quant: true },
        Base::Nf4Single => Quantization::Nf4 { double_quant: false },
        Base::Int8 => Quantization::Int8,
        Base::None => Quantization::None,
    };
    allocator::return_freed_memory();
    let decoder = Decoder::load(&options.folder, quantization, Placement::default())?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut adapter = LoraAdapter::new(decoder.architecture(), spec(options.rank), 0, Placement::default())?;
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default())?;
    let mut gradients = Gradients::zeros(&adapter)?;
    allocator::keep_freed_memory();
    let (mut seconds, mut losses, mut processor) = (0.0, Vec::new(), 0.0);
    for step in 0..options.steps {
        if step == 1 {
            (seconds, processor) = (0.0, processor_seconds()?);
        }
        let start = Instant::now();
        let mut sum = 0.0;
        for batch in batches(options, step)? {
            let trained = options.sequences * (options.length - 1);
            let train_options = TrainOptions {
                checkpointing: options.checkpointing,
                share_prefixes: false,
                ..TrainOptions::new(trained as u64)
            };
            sum += loss_and_gradients(&decoder, &adapter, &batch, train_options, &mut gradients)?.sum / trained as f64;
        }
        gradients.clip(1.0)?;
        optimizer.step(&mut adapter, &gradients, 2e-4)?;
        gradients.clear()?;
        seconds += start.elapsed().as_secs_f64();
        losses.push(sum);
    }
    let counted = (options.steps - 1) as f64;
    let architecture = decoder.architecture();
    let line = serde_json::json!({
        "batch": options.sequences, "seq": options.length, "micro": options.micro.unwrap_or(options.sequences),
        "rank": options.rank, "checkpointing": options.checkpointing, "threads": threads,
        "load_s": round(load_seconds), "step_s": round(seconds / counted),
        "step_cpu_s": round((processor_seconds()? - processor) / counted),
        "tokens_per_s": round((options.sequences * options.length) as f64 * counted / seconds),
        "peak_rss_mb": peak_mib()?, "losses": losses.into_iter().map(round).collect::<Vec<_>>(),
        // The weights that each token is multiplied by: the projections and the head.
        "matmul_weights": architecture.projection_weights() + architecture.vocab_size * architecture.hidden_size,
    });
    println!("{line}");
    Ok(())
}

/// Returns the micro-batches of a step.
fn batches(options: &Random, step: usize) -> Result<Vec<PackedBatch>> {
    let rows: Vec<usize> = (0..options.sequences).collect();
    let mut batches = Vec::new();
    for part in rows.chunks(options.micro.unwrap_or(options.sequences).max(1)) {
        let mut batch = PackedBatch::new();
        for row in part {
            let id = |at: usize| (100 + (step * 7919 + row * 104_729 + at * at * 31) % 40_000) as u32;
            let ids: Vec<u32> = (0..options.length).map(id).collect();
            batch.push(&ids, &vec![1.0; ids.len()])?;
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// Measures the tokens per second of prefill, and of 32 decoding steps, for 1 and for 8 sequences.
fn decode(decoder: &Decoder, adapter: &LoraAdapter) -> Result<()> {
    let prompt: Vec<u32> = (0..256).map(|at| 100 + at * 13).collect();
    for count in [1, 8] {
        let mut caches = Vec::new();
        let start = Instant::now();
        for _ in 0..count {
            let mut cache = decoder.new_cache(512)?;
            let _ = decoder.prefill(&prompt, &mut cache, Some(adapter))?;
            caches.push(cache);
        }
        let prefill = (count * prompt.len()) as f64 / start.elapsed().as_secs_f64();
        let (start, processor) = (Instant::now(), processor_seconds()?);
        for step in 0..32 {
            let id = [200 + step];
            let mut steps: Vec<Step<'_>> =
                caches.iter_mut().map(|cache| Step { ids: &id, cache, adapter: Some(adapter), every: false }).collect();
            let _ = decoder.forward_cached(&mut steps)?;
        }
        let decode = (count * 32) as f64 / start.elapsed().as_secs_f64();
        let processor = (processor_seconds()? - processor) / 32.0;
        let line = serde_json::json!({
            "sequences": count, "prefill_tokens_per_s": round(prefill), "decode_tokens_per_s": round(decode),
            "decode_step_cpu_s": round(processor),
        });
        println!("{line}");
    }
    Ok(())
}

/// Measures the matmul rate of libtorch, and of the library that the decoder chooses.
fn matmul(threads: usize) -> Result<()> {
    let made = || Tensor::f_randn([MATMUL, MATMUL], (Kind::Float, Device::Cpu));
    let (a, b) = (made()?, made()?);
    let libtorch = gflop_per_s(|| Ok(a.f_mm(&b)?))?;
    let chosen = gflop_per_s(|| Ok(mm(&a, &b)?))?;
    let line = serde_json::json!({
        "matmul": MATMUL, "threads": threads, "gflop_per_s": round(libtorch), "chosen_gflop_per_s": round(chosen),
    });
    println!("{line}");
    Ok(())
}

/// Returns the best rate of ten products, after two warmup runs.
fn gflop_per_s(product: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for round in 0..12 {
        let start = Instant::now();
        let _ = product()?;
        if round >= 2 {
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(2.0 * (MATMUL as f64).powi(3) / best / 1e9)
}

fn round(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

/// Returns the processor time of this process, all threads. On a machine with other load it is a fairer measure than
/// wall-clock time, if threads that wait for each other sleep (`OMP_WAIT_POLICY=passive`).
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("too few fields")?.parse::<f64>().context("not a number");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Returns the peak resident memory of this process, as the kernel reports it.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? / 1024)
}
