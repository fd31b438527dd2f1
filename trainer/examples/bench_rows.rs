//! Measures training on the rows of a dataset, as `bench/peer_peft.py --data` does: with real lengths, and a loss on
//! the answers only. Prints one JSON line. `scripts/bench-train` runs this and the peer with the same rows in the same
//! batches.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use attune_domain::{
    architecture::{Architecture, PROJECTIONS},
    dataset::parse_row,
    placement::Placement,
    spec::{AdapterSpec, Quantization},
};
use attune_model::{
    adapter::LoraAdapter,
    allocator,
    batch::{PackedBatch, mask_weights},
    decoder::Decoder,
    optim::{gradients::Gradients, optimizer::AdamW, options::AdamWOptions},
    train::{TrainOptions, loss_and_gradients},
};
use attune_text::{
    encode::{Example, Learnt},
    model::TextModel,
};
use attune_trainer::{
    data::sampler::{MicroBatchLimits, micro_batches},
    memory,
};
use clap::Parser;

/// Measure training on the rows of a dataset. Prints one JSON line.
#[derive(Parser)]
struct Options {
    /// A Hugging Face folder.
    folder: PathBuf,
    /// The dataset: chats as JSONL.
    data: PathBuf,
    /// A file with the rows' numbers, from 0, in training order. Default: the file's order.
    #[arg(long)]
    order: Option<PathBuf>,
    /// A file for the packed base: read if it exists, else written.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Rows per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Rows per micro-batch. Default: all rows of a step.
    #[arg(long)]
    micro: Option<usize>,
    /// Steps; the first is not counted. With 0, the program exits before the first step.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Gradient checkpointing: keep only each block's input for the backward pass.
    #[arg(long)]
    checkpointing: bool,
    /// Compute a prefix that rows of a micro-batch share only once.
    #[arg(long)]
    share_prefixes: bool,
}

fn main() -> Result<()> {
    attune_node::settle_for_training().context("re-executing the process")?;
    let options = Options::parse();
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from(threads)?);
    let rows = rows(&options)?;
    let batches = batches(&options, &rows)?;

    let (quantization, placement) = (Quantization::Nf4 { double_quant: true }, Placement::default());
    allocator::return_freed_memory();
    let decoder = Decoder::load_cached(&options.folder, quantization, placement, options.cache.as_deref())?;
    let mut adapter =
        LoraAdapter::new(decoder.architecture(), AdapterSpec::lora(16, 32.0, &PROJECTIONS), 0, placement)?;
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default())?;
    let mut gradients = Gradients::zeros(&adapter)?;
    allocator::keep_freed_memory();
    let to_first_step = since_start()?.as_secs_f64();

    let (mut seconds, mut tokens, mut flop, mut losses) = (0.0, 0, 0, Vec::new());
    for (step, batches) in batches.iter().enumerate() {
        if step == 1 {
            (seconds, tokens, flop) = (0.0, 0, 0);
        }
        let start = Instant::now();
        let normaliser = batches.iter().map(PackedBatch::trained_tokens).sum();
        let train_options = TrainOptions {
            checkpointing: options.checkpointing,
            share_prefixes: options.share_prefixes,
            ..TrainOptions::new(normaliser)
        };
        let mut sum = 0.0;
        for batch in batches {
            sum += loss_and_gradients(&decoder, &adapter, batch, train_options, &mut gradients)?.sum;
        }
        gradients.clip(1.0)?;
        optimizer.step(&mut adapter, &gradients, 2e-4)?;
        gradients.clear()?;
        seconds += start.elapsed().as_secs_f64();
        tokens += batches.iter().map(PackedBatch::tokens).sum::<usize>();
        flop += batches.iter().map(|batch| matmul_flop(decoder.architecture(), batch, &options)).sum::<u64>();
        losses.push(round(sum / normaliser as f64));
    }
    let counted = options.steps.saturating_sub(1) as f64;
    let line = serde_json::json!({
        "batch": options.batch, "micro": options.micro.unwrap_or(options.batch),
        "share_prefixes": options.share_prefixes, "checkpointing": options.checkpointing,
        "threads": threads, "seconds_to_first_step": round(to_first_step),
        "step_s": round(seconds / counted), "rows_per_s": round(options.batch as f64 * counted / seconds),
        "tokens_per_s": round(tokens as f64 / seconds),
        "gflop_per_row": round(flop as f64 / 1e9 / (options.batch as f64 * counted)),
        "peak_rss_mb": memory::peak().0 >> 20, "losses": losses,
    });
    println!("{line}");
    Ok(())
}

/// Returns the FLOP of the matmuls with the base's weights: 2 per weight in the forward pass, 2 in the backward pass,
/// and 2 more per projection weight with checkpointing.
fn matmul_flop(architecture: &Architecture, batch: &PackedBatch, options: &Options) -> u64 {
    let (rows, predicting) = batch.work(options.share_prefixes);
    let again = if options.checkpointing { 2 } else { 0 };
    let head = architecture.vocab_size * architecture.hidden_size;
    (4 + again) * architecture.projection_weights() * rows as u64 + 4 * head * predicting as u64
}

/// Tokenizes every row, in training order.
fn rows(options: &Options) -> Result<Vec<Example>> {
    let text = TextModel::open(&options.folder)?;
    let data = fs::read_to_string(&options.data).with_context(|| options.data.display().to_string())?;
    let mut rows = Vec::new();
    for (at, line) in data.lines().enumerate() {
        let row = parse_row(at as u64 + 1, line.as_bytes()).map_err(|defect| anyhow::anyhow!("{defect:?}"))?;
        rows.push(text.encode_row(&row, Learnt::Answers, 0).with_context(|| format!("line {}", at + 1))?);
    }
    let Some(path) = &options.order else { return Ok(rows) };
    let order = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let picked = order.split_whitespace().map(|number| {
        let row: usize = number.parse().with_context(|| format!("{}: '{number}' is not a number", path.display()))?;
        rows.get(row).cloned().with_context(|| format!("{}: row {row} of {}", path.display(), rows.len()))
    });
    picked.collect()
}

/// Returns the micro-batches of each step: rows of similar length together, without padding.
fn batches(options: &Options, rows: &[Example]) -> Result<Vec<Vec<PackedBatch>>> {
    let needed = options.steps * options.batch;
    ensure!(
        needed <= rows.len(),
        "{} steps of {} rows need {needed}, not {}",
        options.steps,
        options.batch,
        rows.len()
    );
    let most = MicroBatchLimits { rows: options.micro.unwrap_or(options.batch).max(1), tokens: usize::MAX };
    let mut steps = Vec::new();
    for first in (0..needed).step_by(options.batch) {
        let mut batches = Vec::new();
        for part in micro_batches((first..first + options.batch).collect(), |row| rows[row].ids.len(), most) {
            let mut batch = PackedBatch::new();
            for row in part {
                batch.push(&rows[row].ids, &mask_weights(&rows[row].trained))?;
            }
            batches.push(batch);
        }
        steps.push(batches);
    }
    Ok(steps)
}

/// Returns the time since the kernel started this process, dynamic loading and the re-execution included.
fn since_start() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let started = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(19));
    let ticks: f64 = started.context("/proc/self/stat has no start")?.parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime.split_whitespace().next().context("/proc/uptime is empty")?.parse()?;
    Ok(Duration::from_secs_f64((now - ticks / 100.0).max(0.0)))
}

fn round(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}
