//! Latency under open-loop load, and under a flood of another project.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Ask, Client},
    load::{Mix, Outcome, Source, closed_loop, open_loop},
    prompts::Random,
    replica::Replica,
    setup::Setup,
    stats::{percentile, rate_between},
};

/// The number of adapters of a mix.
const ADAPTERS: usize = 8;
/// The requests in progress while the capacity is measured.
const WORKERS: usize = 32;
/// The time before the capacity is measured.
const BEFORE: Duration = Duration::from_secs(3);
/// The time in which the capacity is measured.
const WINDOW: Duration = Duration::from_secs(12);
/// The loads, as shares of the capacity.
const SHARES: [f64; 3] = [0.5, 0.8, 0.95];
/// The objective of a request: the seconds to its first token, and per token after it. Text at this rate comes as fast
/// as it is read: five tokens per second are some 230 words per minute.
const OBJECTIVE: (f64, f64) = (1.0, 0.2);

/// A replica under a mix of requests, with its capacity in requests per second.
pub(crate) struct Loaded {
    pub(crate) replica: Replica,
    pub(crate) mix: Mix,
    pub(crate) capacity: f64,
}

impl Loaded {
    /// Starts a replica and measures its capacity: the tokens per second of a full replica, over those of a request.
    pub(crate) async fn start(setup: &Setup) -> Result<Self> {
        let adapters = setup.adapters(ADAPTERS)?;
        let replica = Replica::start(setup, setup.served(ADAPTERS)?).await?;
        let mut mix = Mix::new(adapters.refs(replica.platform.url()).await?, 0);
        let from = Instant::now() + BEFORE;
        let answers = closed_loop(&replica.client, &mut mix, WORKERS, BEFORE + WINDOW).await?;
        let capacity = rate_between(&answers, from, from + WINDOW) / (Mix::mean_answer() - 1.0);
        Ok(Self { replica, mix, capacity })
    }
}

/// Measures loads of `seconds` each.
pub(crate) async fn measure(setup: &Setup, seconds: f64) -> Result<Value> {
    let Loaded { replica, mut mix, capacity } = Loaded::start(setup).await?;
    let mut loads = Vec::new();
    for share in SHARES {
        let time = Duration::from_secs_f64(seconds);
        let outcome = open_loop(&replica.client, &mut mix, share * capacity, time).await?;
        loads.push(line_of(share, seconds, &outcome));
    }
    replica.stop().await?;
    Ok(json!({ "capacity_requests_per_s": capacity, "objective_s": OBJECTIVE, "loads": loads }))
}

fn line_of(share: f64, seconds: f64, outcome: &Outcome) -> Value {
    let first: Vec<f64> = outcome.answers.iter().map(|answer| answer.to_first().as_secs_f64()).collect();
    let each: Vec<f64> = outcome.answers.iter().map(Answer::per_token).collect();
    let good = first.iter().zip(&each).filter(|(first, each)| **first <= OBJECTIVE.0 && **each <= OBJECTIVE.1).count();
    let count = outcome.answers.len() + outcome.errors.len();
    json!({
        "share": share,
        "requests": count,
        "errors": outcome.errors,
        "ttft_s": { "p50": percentile(&first, 0.5), "p99": percentile(&first, 0.99) },
        "tpot_s": { "p50": percentile(&each, 0.5), "p99": percentile(&each, 0.99) },
        "good_share": good as f64 / count.max(1) as f64,
        "goodput_requests_per_s": good as f64 / seconds,
    })
}

/// The requests of the flood that are in progress.
const FLOOD: usize = 64;
/// The time from the start of the flood to the first measured request.
const FLOOD_BEFORE: Duration = Duration::from_secs(3);
/// The tokens of the prompts and of the answers of both projects.
const TOKENS: (u64, u64) = (64, 32);

/// Requests of one project to the base.
struct Project {
    name: &'static str,
    random: Random,
    seed: u64,
}

impl Project {
    fn new(name: &'static str, seed: u64) -> Self {
        Self { name, random: Random::new(seed), seed }
    }
}

impl Source for Project {
    fn next(&mut self) -> Ask {
        self.seed += 1;
        Ask { project: self.name.into(), ..Ask::sampled(self.random.prompt(TOKENS.0), TOKENS.1, self.seed) }
    }
}

/// Measures the requests of one project, one after another, alone and while another project keeps [`FLOOD`] requests in
/// progress, in `rounds` rounds of `requests` requests each.
pub(crate) async fn measure_flood(setup: &Setup, rounds: usize, requests: u64) -> Result<Value> {
    let replica = Replica::start(setup, setup.served(0)?).await?;
    let (mut alone, mut flooded) = (Vec::new(), Vec::new());
    let mut quiet = Project::new("quiet", 1);
    replica.client.answer(quiet.next()).await?;
    for round in 0..rounds {
        alone.extend(latencies(&replica.client, &mut quiet, requests).await?);
        let (client, mut loud) = (replica.client.clone(), Project::new("loud", 1_000_000 * (round as u64 + 1)));
        let flood = tokio::spawn(async move {
            closed_loop(&client, &mut loud, FLOOD, Duration::from_secs(3600)).await.map(|answers| answers.len())
        });
        tokio::time::sleep(FLOOD_BEFORE).await;
        flooded.extend(latencies(&replica.client, &mut quiet, requests).await?);
        if flood.is_finished() {
            let answers = flood.await??;
            bail!("the flood has ended after {answers} answers");
        }
        // Dropped requests are cancelled.
        flood.abort();
        let _ = flood.await;
    }
    replica.stop().await?;
    Ok(json!({ "alone_s": alone, "flooded_s": flooded }))
}

/// Returns the seconds of `count` answers, one after another.
async fn latencies(client: &Client, source: &mut impl Source, count: u64) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for _ in 0..count {
        seconds.push(client.answer(source.next()).await?.whole().as_secs_f64());
    }
    Ok(seconds)
}
