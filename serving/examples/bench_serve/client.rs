//! Requests to a replica, and the times of their answers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use attune_domain::serve::{AdapterRef, AdapterTier, Form, GenerateEvent, GenerateRequest, Priority, Prompt, Sampling};
use attune_node::http_client;

/// A client of one replica. Clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// A request. Its answer has exactly `tokens` tokens.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) project: String,
    pub(crate) adapter: Option<AdapterRef>,
    pub(crate) prompt: Prompt,
    pub(crate) tokens: u64,
    /// 1 samples text that varies; 0 always selects the most likely token.
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
}

impl Ask {
    /// Returns a request with a prompt of token IDs, for the base, sampled at temperature 1: greedy answers to random
    /// prompts repeat themselves, which would flatter an engine that predicts repetitions.
    pub(crate) fn sampled(prompt: Vec<u32>, tokens: u64, seed: u64) -> Self {
        let prompt = Prompt::Tokens { ids: prompt };
        Self { project: "bench".into(), adapter: None, prompt, tokens, temperature: 1.0, seed }
    }
}

/// The times of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The time at which the request was due.
    pub(crate) due: Instant,
    /// The time at which the first text came.
    pub(crate) first: Instant,
    /// The time at which the answer ended.
    pub(crate) last: Instant,
    /// The number of the prompt's tokens.
    pub(crate) prompt_tokens: u64,
    /// The number of the prompt's tokens that were copied from another request.
    pub(crate) cached_tokens: u64,
    /// The number of the answer's tokens.
    pub(crate) tokens: u64,
    /// The place where the adapter was found.
    pub(crate) tier: Option<AdapterTier>,
}

impl Answer {
    /// Returns an answer without events to a request that is due at `due`.
    pub(crate) fn at(due: Instant) -> Self {
        Self { due, first: due, last: due, prompt_tokens: 0, cached_tokens: 0, tokens: 0, tier: None }
    }

    /// Returns the time to the first token.
    pub(crate) fn to_first(&self) -> Duration {
        self.first - self.due
    }

    /// Returns the time of the whole answer.
    pub(crate) fn whole(&self) -> Duration {
        self.last - self.due
    }

    /// Returns the seconds per token after the first.
    pub(crate) fn per_token(&self) -> f64 {
        (self.last - self.first).as_secs_f64() / (self.tokens.max(2) - 1) as f64
    }

    /// Returns the tokens per second after the first.
    pub(crate) fn rate(&self) -> f64 {
        1.0 / self.per_token()
    }
}

impl Client {
    pub(crate) fn new(address: &str, token: &str) -> Result<Self> {
        Ok(Self { http: http_client()?, url: format!("http://{address}/generate"), token: token.to_owned() })
    }

    /// Sends a request that is due now, and returns the times of its answer.
    pub(crate) async fn answer(&self, ask: Ask) -> Result<Answer> {
        let want = ask.tokens;
        let mut answer = Answer::at(Instant::now());
        let mut response =
            self.http.post(&self.url).bearer_auth(&self.token).json(&request(ask)).send().await?.error_for_status()?;
        let (mut rest, mut first, mut is_done) = (Vec::<u8>::new(), None, false);
        while let Some(chunk) = response.chunk().await? {
            let now = Instant::now();
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let event: GenerateEvent = serde_json::from_slice(&line).context("not an event")?;
                match event {
                    GenerateEvent::Started { prompt_tokens, cached_tokens, tier, .. } => {
                        (answer.prompt_tokens, answer.cached_tokens, answer.tier) =
                            (prompt_tokens, cached_tokens, tier);
                    }
                    GenerateEvent::Done { completion_tokens } => {
                        (answer.tokens, answer.last, is_done) = (completion_tokens, now, true);
                    }
                    GenerateEvent::Failed { code, message, .. } => bail!("{code}: {message}"),
                    // Special tokens have no text: an answer of one such token has its end only.
                    _ => first = first.or(Some(now)),
                }
            }
        }
        ensure!(is_done && answer.tokens == want, "{} tokens came instead of {want}", answer.tokens);
        answer.first = first.unwrap_or(answer.last);
        Ok(answer)
    }
}

fn request(ask: Ask) -> GenerateRequest {
    let sampling = Sampling {
        temperature: ask.temperature,
        seed: ask.seed,
        max_tokens: Some(ask.tokens),
        ignore_end_tokens: true,
        ..Sampling::default()
    };
    GenerateRequest {
        request_id: format!("bench-{}", ask.seed),
        project: ask.project,
        priority: Priority::Live,
        adapter: ask.adapter,
        keep: None,
        prompt: ask.prompt,
        truncate: None,
        echo: false,
        form: Form::Free,
        tools: None,
        choices: 1,
        sampling,
    }
}
