//! The time from the start of the process to the first token, and its parts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{client::Ask, prompts::Random, replica::Replica, setup::Setup, stats::median};

/// The tokens of the prompt.
const PROMPT: u64 = 16;

/// The seconds of a start's parts.
#[derive(Default)]
struct Parts {
    /// From the start of the process to the request for its spec.
    program: Vec<f64>,
    /// From there to the address: the base is loaded.
    load: Vec<f64>,
    /// From there to the first token of a request that is sent then.
    first_token: Vec<f64>,
    /// The sum.
    all: Vec<f64>,
}

/// Measures a start with an empty disk cache, which fetches and quantizes the base, and `rounds` starts with the base
/// in the disk cache.
pub(crate) async fn measure(setup: &Setup, rounds: usize) -> Result<Value> {
    let cache = setup.scratch.join("cache-of-starts");
    if cache.exists() {
        std::fs::remove_dir_all(&cache)?;
    }
    let mut empty = Parts::default();
    empty.measure(setup, &cache).await?;
    let mut parts = Parts::default();
    for _ in 0..rounds {
        parts.measure(setup, &cache).await?;
    }
    std::fs::remove_dir_all(&cache)?;
    Ok(json!({
        "empty_cache_s": median(&empty.all),
        "program_s": median(&parts.program),
        "load_s": median(&parts.load),
        "first_token_s": median(&parts.first_token),
        "starts_s": parts.all,
    }))
}

impl Parts {
    async fn measure(&mut self, setup: &Setup, cache: &Path) -> Result<()> {
        let replica = Replica::start_in(setup, setup.served(0)?, cache).await?;
        let asked = Instant::now();
        let ask = Ask::sampled(Random::new(0).prompt(PROMPT), 1, 0);
        let answer = replica.client.answer(ask).await?;
        let (program, load) = (replica.start.fetched - replica.spawned, replica.start.opened - replica.start.fetched);
        let first_token = answer.first - asked;
        let parts = [&mut self.program, &mut self.load, &mut self.first_token, &mut self.all];
        let all: Duration = program + load + first_token;
        for (list, time) in parts.into_iter().zip([program, load, first_token, all]) {
            list.push(time.as_secs_f64());
        }
        replica.stop().await
    }
}
