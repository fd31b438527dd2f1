//! Measures tokens per second at several batch sizes: `bench_decode FOLDER [THREADS]`, where FOLDER is a base model.
//!
//! Each line is the engine with that many concurrent requests of 64 tokens each, greedy, after a prompt of 128 tokens.
//! The answer rate excludes the time for the prompts. The first lines are without drafts. The last ones compare one
//! request of a text that repeats with drafts and without.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use attune_domain::{
    bytes::Bytes,
    placement::Placement,
    serve::{KvCacheDtype, Priority, Sampling},
    spec::Quantization,
};
use attune_model::decoder::Decoder;
use attune_serving::decoding::{
    engine::{self, EngineHandle, Limits},
    sampling::Sampler,
    sequence::{EngineEvent, GenerateJob},
};
use tokio::sync::mpsc;

const PROMPT: u32 = 128;
const ANSWER: u64 = 64;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder: PathBuf = arguments.next().context("usage: bench_decode FOLDER [THREADS]")?.into();
    let threads: i32 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    tch::set_num_threads(threads);
    let repeating: Vec<u32> =
        (0..PROMPT / 4).map(|at| 1000 + at * at * 37 % 20_000).cycle().take(PROMPT as usize).collect();
    for speculation in [false, true] {
        let began = Instant::now();
        let decoder = Decoder::load(&folder, Quantization::None, Placement::default())?;
        println!("loaded in {:.1} s, {threads} threads, drafts: {speculation}", began.elapsed().as_secs_f64());
        let limits = Limits {
            max_batch: 16,
            kv_memory: Bytes::mib(2048),
            max_wait: Duration::from_secs(60),
            speculation,
            kv_cache_dtype: KvCacheDtype::Auto,
        };
        let (engine, _ended) = engine::start(decoder.into(), limits)?;
        println!("batch  prompt tokens/s  first token ms  answer tokens/s");
        if !speculation {
            for batch in [1u32, 4, 8, 16] {
                // Prompts that share no prefix, within this batch and with the others.
                let prompt =
                    |request: u32| (0..PROMPT).map(move |at| 1000 + (batch * 7919 + request * 131 + at * 17) % 20_000);
                measure(&engine, (0..batch).map(|request| prompt(request).collect()).collect())?;
            }
        }
        println!("of a text that repeats:");
        measure(&engine, vec![repeating.clone().into()])?;
    }
    Ok(())
}

fn measure(engine: &EngineHandle, prompts: Vec<Arc<[u32]>>) -> anyhow::Result<()> {
    let began = Instant::now();
    let (batch, mut answers) = (prompts.len(), Vec::new());
    for prompt in prompts {
        let (out, events) = mpsc::unbounded_channel();
        let wishes = Sampling { temperature: 0.0, ..Sampling::default() };
        let sampler = Sampler::new(&wishes, 0, &prompt);
        engine.submit(GenerateJob {
            prompt,
            lease: None,
            project: "bench".into(),
            priority: Priority::Live,
            sampler,
            max_tokens: Some(ANSWER),
            stop_ids: Vec::new(),
            constraint: None,
            scores: None,
            prompt_scores: false,
            out,
        })?;
        answers.push(std::thread::spawn(move || listen(events)));
    }
    let mut times = Vec::new();
    for answer in answers {
        times.push(answer.join().map_err(|_| anyhow::anyhow!("a listener panicked"))??);
    }
    let first = times.iter().filter_map(|tokens| tokens.first()).min().context("no token came")?;
    // Decoding is measured from the moment at which all prompts are processed and all answers run.
    let all_read = times.iter().filter_map(|tokens| tokens.first()).max().context("no token came")?;
    let last = times.iter().filter_map(|tokens| tokens.last()).max().context("no token came")?;
    let after = times.iter().flatten().filter(|time| *time > all_read).count();
    let (reading, writing) = ((*first - began).as_secs_f64(), (*last - *all_read).as_secs_f64());
    println!(
        "{batch:5}  {:15.0}  {:14.0}  {:15.1}",
        f64::from(PROMPT) / reading,
        reading * 1e3,
        after as f64 / writing.max(1e-9)
    );
    Ok(())
}

/// Returns the time of each token.
fn listen(mut events: mpsc::UnboundedReceiver<EngineEvent>) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    while let Some(what) = events.blocking_recv() {
        match what {
            EngineEvent::Token { .. } => times.push(Instant::now()),
            EngineEvent::Failed(why) => return Err(why.into()),
            EngineEvent::Started { .. } | EngineEvent::End { .. } => {}
        }
    }
    Ok(times)
}
