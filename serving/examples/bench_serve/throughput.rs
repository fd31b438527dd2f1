//! Tokens per second of a full replica: over the base alone, and over several adapters.

use std::time::{Duration, Instant};

use anyhow::Result;
use attune_domain::serve::AdapterRef;
use serde_json::{Map, Value};

use crate::{
    client::{Ask, Client},
    load::{Source, closed_loop},
    prompts::{Popularity, Random},
    replica::Replica,
    setup::Setup,
    stats::rate_between,
};

/// The requests in progress. One project can hold three quarters of a replica's slots (`OTHERS_SHARE` of
/// `serving/src/decoding/engine.rs`); the others wait, so that no slot is ever free.
const WORKERS: usize = 16;
/// The tokens of a prompt.
const PROMPT: u64 = 64;
/// The tokens of an answer.
const ANSWER: u64 = 48;
/// The time before the window in which tokens count: all slots are then taken by requests of different ages.
const BEFORE: Duration = Duration::from_secs(2);
/// The numbers of active adapters.
const COUNTS: [usize; 4] = [1, 8, 32, 128];

/// Requests that choose among adapters; of the base, if there are none.
struct Requests<'a> {
    random: Random,
    adapters: &'a [AdapterRef],
    popularity: Popularity,
    seed: u64,
}

impl Source for Requests<'_> {
    fn next(&mut self) -> Ask {
        self.seed += 1;
        let picked = if self.adapters.is_empty() { None } else { Some(self.random.pick(&self.popularity)) };
        let adapter = picked.and_then(|number| self.adapters.get(number)).cloned();
        Ask { adapter, ..Ask::sampled(self.random.prompt(PROMPT), ANSWER, self.seed) }
    }
}

/// Measures `rounds` rounds over all numbers of adapters, `seconds` each. Returns the rates of all rounds by name.
pub(crate) async fn measure(setup: &Setup, rounds: usize, seconds: f64) -> Result<Value> {
    let most = COUNTS.into_iter().max().unwrap_or(0);
    let adapters = setup.adapters(most)?;
    let replica = Replica::start(setup, setup.served(most)?).await?;
    let refs = adapters.refs(replica.platform.url()).await?;
    let mut random = Random::new(1);
    for adapter in &refs {
        let ask = Ask { adapter: Some(adapter.clone()), ..Ask::sampled(random.prompt(PROMPT), 1, 0) };
        replica.client.answer(ask).await?;
    }
    let mut line = Map::new();
    for round in 0..rounds {
        for (name, count, is_skewed) in shapes() {
            let popularity = if is_skewed { Popularity::skewed(count) } else { Popularity::even(count) };
            let seed = ((round as u64) << 32) | ((count as u64) << 20);
            let requests = Requests { random: Random::new(seed), adapters: &refs[..count], popularity, seed };
            let rate = rate(&replica.client, requests, seconds).await?;
            if let Value::Array(rates) = line.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                rates.push(rate.into());
            }
        }
    }
    replica.stop().await?;
    Ok(line.into())
}

/// Returns the names, the numbers of adapters, and whether their popularity is skewed.
fn shapes() -> Vec<(String, usize, bool)> {
    let mut shapes = vec![("base".to_owned(), 0, false)];
    for count in COUNTS {
        shapes.push((format!("even_{count}"), count, false));
        if count > 1 {
            shapes.push((format!("skewed_{count}"), count, true));
        }
    }
    shapes
}

/// Returns the tokens per second within `seconds`, the time before and after which requests are in progress too.
async fn rate(client: &Client, mut requests: Requests<'_>, seconds: f64) -> Result<f64> {
    let window = Duration::from_secs_f64(seconds);
    let from = Instant::now() + BEFORE;
    let answers = closed_loop(client, &mut requests, WORKERS, BEFORE + window).await?;
    Ok(rate_between(&answers, from, from + window))
}
