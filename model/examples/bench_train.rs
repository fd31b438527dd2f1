//! Measures training and decoding on a Hugging Face folder: tokens per second and peak memory, one JSON line.
//!
//! Use: `bench_train FOLDER [sequences] [length] [steps] [checkpointing 0|1] [nf4|none]`. Random ids, every position
//! trained, as `transformers` + PEFT + bitsandbytes are measured by `peer_peft.py` without data.

use std::time::Instant;

use anyhow::{Context, Result};
use attune_domain::spec::{AdapterSpec, Quantization};
use attune_model::{
    adapter::LoraAdapter,
    batch::PackedBatch,
    decoder::{Decoder, Step},
    gradients::Gradients,
    optimizer::{AdamW, AdamWOptions},
    train::{TrainOptions, loss_and_gradients},
};

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().collect();
    let folder =
        given.get(1).context("use: bench_train FOLDER [sequences] [length] [steps] [checkpointing] [nf4|none]")?;
    let number = |at: usize, default: usize| given.get(at).map_or(Ok(default), |text| text.parse());
    let (sequences, length, steps, checkpointing) = (number(2, 4)?, number(3, 256)?, number(4, 6)?, number(5, 0)?);
    let quantization = match given.get(6).map(String::as_str) {
        Some("none") => Quantization::None,
        _ => Quantization::Nf4 { double_quant: true },
    };
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from(threads)?);

    let start = Instant::now();
    let decoder = Decoder::load(folder.as_ref(), quantization)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let spec = AdapterSpec::lora(16, 32.0, &attune_domain::architecture::PROJECTIONS);
    let mut adapter = LoraAdapter::new(decoder.architecture(), spec, 0)?;
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default())?;
    let mut gradients = Gradients::zeros(&adapter)?;
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    let mut warm_from = 0.0;
    for step in 0..steps {
        let mut batch = PackedBatch::new();
        for row in 0..sequences {
            let ids: Vec<u32> =
                (0..length).map(|at| (100 + (step * 7919 + row * 104_729 + at * at * 31) % 40_000) as u32).collect();
            batch.push(&ids, &vec![true; length])?;
        }
        let options = TrainOptions { checkpointing: checkpointing == 1, ..TrainOptions::new(batch.trained_tokens()) };
        if step == 1 {
            warm_from = processor_seconds()?;
        }
        let start = Instant::now();
        let loss = loss_and_gradients(&decoder, &adapter, &batch, options, &mut gradients)?;
        gradients.clip(1.0)?;
        optimizer.step(&mut adapter, &gradients, 2e-4)?;
        gradients.clear()?;
        times.push(start.elapsed().as_secs_f64());
        losses.push(loss.mean());
    }
    let warm: f64 = times.iter().skip(1).sum::<f64>() / (times.len() - 1).max(1) as f64;
    println!(
        "{{\"batch\":{sequences},\"seq\":{length},\"checkpointing\":{checkpointing},\"threads\":{threads},\"load_s\":{load_seconds:.2},\
         \"step_s\":{warm:.3},\"step_cpu_s\":{:.3},\"tokens_per_s\":{:.1},\"peak_rss_mb\":{},\"losses\":{losses:.4?}}}",
        (processor_seconds()? - warm_from) / (times.len() - 1).max(1) as f64,
        (sequences * length) as f64 / warm,
        peak_mib()?,
    );
    decode(&decoder, &adapter)
}

/// Tokens per second of a prompt read, and of 32 steps for 1 and for 8 sequences.
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
                caches.iter_mut().map(|cache| Step { ids: &id, cache, adapter: Some(adapter) }).collect();
            let _ = decoder.forward_cached(&mut steps)?;
        }
        let decode = (count * 32) as f64 / start.elapsed().as_secs_f64();
        let processor = (processor_seconds()? - processor) / 32.0;
        println!(
            "{{\"sequences\":{count},\"prefill_tokens_per_s\":{prefill:.1},\"decode_tokens_per_s\":{decode:.1},\
             \"decode_step_cpu_s\":{processor:.3}}}"
        );
    }
    Ok(())
}

/// Processor time of this process, all threads: on a machine that others use too, a fairer measure than the clock. Set
/// `GOMP_SPINCOUNT=0` to leave out threads that wait for each other.
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("too few fields")?.parse::<f64>().context("not a number");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// The kernel's own count of the most memory that this process has had.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? / 1024)
}
