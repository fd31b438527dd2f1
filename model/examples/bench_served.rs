//! Measures a base as a replica serves it: `bench_served FOLDER --quantization nf4-double --hold codes`. Prints one
//! JSON line: prefill and decoding rates for 1 and for 8 sequences, the memory of the weights, and, with `--ids FILE`,
//! a JSON list of token IDs, the perplexity and the difference from the logits in `f32`.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use attune_domain::{placement::Placement, spec::Quantization};
use attune_model::{
    decoder::{Decoder, Step},
    nn::kv_cache::KvCache,
    served::Hold,
};
use clap::{Parser, ValueEnum};
use tch::{Kind, Tensor};

#[derive(Parser)]
#[command(about = "Measures the serving path of a base; prints one JSON line")]
struct Options {
    /// A Hugging Face folder.
    folder: PathBuf,
    /// The quantization: none, int8, nf4 or nf4-double.
    #[arg(long, default_value = "nf4-double")]
    quantization: String,
    /// The form of the quantized weights.
    #[arg(long, value_enum, default_value_t = Form::Codes)]
    hold: Form,
    /// The number of threads.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 256)]
    prompt: u32,
    /// Tokens that each sequence decodes.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// A JSON file with a list of token IDs, for the perplexity.
    #[arg(long)]
    ids: Option<PathBuf>,
    /// Tokens of each part of `--ids`.
    #[arg(long, default_value_t = 512)]
    part: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// Compute from the codes.
    Codes,
    /// Unpack once, to f32.
    Unpacked,
}

fn main() -> Result<()> {
    let options = Options::parse();
    tch::set_num_threads(options.threads);
    let quantization = Quantization::from_name(&options.quantization).context("not a quantization")?;
    let hold = match options.hold {
        Form::Codes => Hold::Codes,
        Form::Unpacked => Hold::Unpacked,
    };
    let scratch = std::env::temp_dir().join(format!("bench-served-{}", std::process::id()));
    let load = |hold| Decoder::load_served(&options.folder, quantization, Placement::default(), &scratch, hold);
    let began = Instant::now();
    let decoder = load(hold)?;
    let load_s = began.elapsed().as_secs_f64();
    let mut line = serde_json::json!({
        "quantization": options.quantization,
        "threads": options.threads,
        "load_s": load_s,
        "weight_bytes": decoder.weight_bytes()?,
    });
    for batch in [1, 8] {
        let [prefill, decode] = rates(&decoder, batch, &options)?;
        line[format!("prefill_tokens_per_s_{batch}")] = prefill.into();
        line[format!("decode_tokens_per_s_{batch}")] = decode.into();
    }
    if let Some(path) = &options.ids {
        let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(path)?).context("not a list of token IDs")?;
        let parts: Vec<Vec<u32>> = ids.chunks(options.part).filter(|ids| ids.len() > 1).map(<[u32]>::to_vec).collect();
        ensure!(!parts.is_empty(), "--ids needs two tokens");
        let dense = load(Hold::Unpacked)?;
        let (mut loss, mut loss_f32, mut count, mut far) = (0.0, 0.0, 0, 0f64);
        for part in &parts {
            let (got, want) = (logits(&decoder, part)?, logits(&dense, part)?);
            loss += negative_log_likelihood(&got, part)?;
            loss_f32 += negative_log_likelihood(&want, part)?;
            count += part.len() - 1;
            far = far.max(size(&got.f_sub(&want)?)? / size(&want)?);
        }
        line["perplexity"] = (loss / count as f64).exp().into();
        line["perplexity_f32"] = (loss_f32 / count as f64).exp().into();
        line["logits_from_f32"] = far.into();
    }
    // Without a quantization, no file was written.
    let _ = std::fs::remove_file(&scratch);
    println!("{line}");
    Ok(())
}

/// Returns tokens per second of prefilling prompts, and of decoding after them, over all sequences.
fn rates(decoder: &Decoder, batch: usize, options: &Options) -> Result<[f64; 2]> {
    let room = (options.prompt + options.tokens) as usize + 1;
    let mut caches = (0..batch).map(|_| decoder.new_cache(room)).collect::<Result<Vec<KvCache>, _>>()?;
    let vocabulary = u32::try_from(decoder.architecture().vocab_size)?;
    let prompt: Vec<u32> = (0..options.prompt).map(|at| (at * 7919 + 13) % vocabulary).collect();
    let mut run = |ids: &[u32]| -> Result<()> {
        let steps = caches.iter_mut();
        let mut steps: Vec<Step<'_>> = steps.map(|cache| Step { ids, cache, adapter: None, every: false }).collect();
        let logits = decoder.forward_cached(&mut steps)?;
        ensure!(logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1, "a logit is not finite");
        Ok(())
    };
    let began = Instant::now();
    run(&prompt)?;
    let prefill = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for at in 0..options.tokens {
        run(&[at * 31 % vocabulary])?;
    }
    let decode = began.elapsed().as_secs_f64();
    let count = batch as f64;
    Ok([count * f64::from(options.prompt) / prefill, count * f64::from(options.tokens) / decode])
}

/// Returns the logits `[t, v]` at every token, by the serving path.
fn logits(decoder: &Decoder, ids: &[u32]) -> Result<Tensor> {
    let mut cache = decoder.new_cache(ids.len())?;
    Ok(decoder.forward_cached(&mut [Step { ids, cache: &mut cache, adapter: None, every: true }])?)
}

fn negative_log_likelihood(logits: &Tensor, ids: &[u32]) -> Result<f64> {
    let next: Vec<i64> = ids.iter().skip(1).map(|&id| i64::from(id)).collect();
    let rows = logits.f_narrow(0, 0, i64::try_from(next.len())?)?.f_log_softmax(-1, Kind::Double)?; // [t - 1, v]
    let picked = rows.f_gather(1, &Tensor::f_from_slice(&next)?.f_unsqueeze(1)?, false)?;
    Ok(-picked.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// Returns the root mean square.
fn size(numbers: &Tensor) -> Result<f64> {
    Ok(numbers.f_square()?.f_mean(Kind::Double)?.f_double_value(&[])?.sqrt())
}
