//! Closed and open loops of requests.

use std::time::{Duration, Instant};

use anyhow::Result;
use attune_domain::serve::AdapterRef;
use tokio::task::JoinSet;

use crate::{
    client::{Answer, Ask, Client},
    prompts::{Popularity, Random},
};

/// The number of projects of a mix.
const PROJECTS: u64 = 4;
/// The smallest and the largest number of tokens of a mix's prompts.
const PROMPT: (u64, u64) = (32, 256);
/// The smallest and the largest number of tokens of a mix's answers.
const ANSWER: (u64, u64) = (16, 64);

/// A source of requests.
pub(crate) trait Source {
    /// Returns the next request.
    fn next(&mut self) -> Ask;
}

/// Requests of several projects with several adapters, popular and rare ones, and with prompts and answers of uniformly
/// distributed lengths.
pub(crate) struct Mix {
    random: Random,
    adapters: Vec<AdapterRef>,
    popularity: Popularity,
    seed: u64,
}

impl Mix {
    pub(crate) fn new(adapters: Vec<AdapterRef>, seed: u64) -> Self {
        let popularity = Popularity::skewed(adapters.len());
        Self { random: Random::new(seed), adapters, popularity, seed }
    }

    /// Returns the mean number of tokens of an answer.
    pub(crate) fn mean_answer() -> f64 {
        f64::midpoint(ANSWER.0 as f64, ANSWER.1 as f64)
    }
}

impl Source for Mix {
    fn next(&mut self) -> Ask {
        self.seed += 1;
        let (prompt, answer) = (self.random.between(PROMPT.0, PROMPT.1), self.random.between(ANSWER.0, ANSWER.1));
        let project = format!("project-{}", self.random.between(1, PROJECTS));
        let adapter = self.adapters.get(self.random.pick(&self.popularity)).cloned();
        Ask { project, adapter, ..Ask::sampled(self.random.prompt(prompt), answer, self.seed) }
    }
}

/// Keeps `workers` requests in progress for `time`, and waits for the last answers.
pub(crate) async fn closed_loop(
    client: &Client,
    source: &mut impl Source,
    workers: usize,
    time: Duration,
) -> Result<Vec<Answer>> {
    let end = Instant::now() + time;
    let mut running = JoinSet::new();
    let mut answers = Vec::new();
    loop {
        while running.len() < workers && Instant::now() < end {
            let (client, ask) = (client.clone(), source.next());
            running.spawn(async move { client.answer(ask).await });
        }
        match running.join_next().await {
            Some(answer) => answers.push(answer??),
            None => return Ok(answers),
        }
    }
}

/// The outcome of an open loop.
pub(crate) struct Outcome {
    /// The answers.
    pub(crate) answers: Vec<Answer>,
    /// The messages of the requests that failed.
    pub(crate) errors: Vec<String>,
}

/// Sends requests as a Poisson process of `rate` arrivals per second for `time`, whether others are answered or not,
/// and waits for the last answers.
pub(crate) async fn open_loop(client: &Client, source: &mut impl Source, rate: f64, time: Duration) -> Result<Outcome> {
    let start = Instant::now();
    let mut random = Random::new(rate.to_bits());
    let mut running = JoinSet::new();
    let mut outcome = Outcome { answers: Vec::new(), errors: Vec::new() };
    let mut due = start;
    loop {
        due += Duration::from_secs_f64(random.gap(rate));
        if due > start + time {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (client, ask) = (client.clone(), source.next());
        running.spawn(async move { client.answer(ask).await });
        // A long load keeps no answered request.
        while let Some(answer) = running.try_join_next() {
            outcome.add(answer?);
        }
    }
    while let Some(answer) = running.join_next().await {
        outcome.add(answer?);
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, answer: Result<Answer>) {
        match answer {
            Ok(answer) => self.answers.push(answer),
            Err(why) => self.errors.push(format!("{why:#}")),
        }
    }
}
