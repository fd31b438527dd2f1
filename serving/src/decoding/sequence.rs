//! One request inside the engine: its tokens, how many of them are in its cache, and what it may still have.
//!
//! The cache may be taken away when memory is short. The tokens stay, and are fed again later just as they were the first
//! time: the prompt in the same chunks, drawn tokens one by one. So the answer goes on as if nothing had happened.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_domain::serve::{AdapterKey, FinishReason};
use attune_model::{adapter::LoraAdapter, decoder::Step, nn::kv_cache::KvCache};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    adapters::{Lease, Resident},
    answering::grammar::Constraint,
    decoding::{sampling::Sampler, scores::TokenScore},
    error::Failure,
    residency::Reservation,
};

/// Prompt tokens that are read in one step, so that running answers do not wait long. Always cut at multiples of it: then
/// a prefix that is taken over from another request has, to the last bit, the numbers that it would have had here.
pub const CHUNK: usize = 128;

/// What the engine is asked to do.
pub struct Work {
    /// Whose it is.
    pub project: Arc<str>,
    /// Not empty.
    pub prompt: Arc<[u32]>,
    /// `None`: the base itself.
    pub lease: Option<Lease>,
    /// Draws the tokens.
    pub sampler: Sampler,
    /// At most so many tokens.
    pub max_tokens: Option<u64>,
    /// Tokens that end the answer.
    pub stop_ids: Vec<u32>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Tells how likely each token was, with so many most likely ones in its place.
    pub scores: Option<usize>,
    /// Tells the same of the prompt's tokens.
    pub prompt_scores: bool,
    /// Where the tokens go. Dropping the other end cancels.
    pub out: UnboundedSender<Drawn>,
}

/// What the engine says of a [`Work`].
#[derive(Debug)]
pub enum Drawn {
    /// The prompt is read.
    Started {
        /// One for each of its tokens, if they were asked for.
        scores: Vec<TokenScore>,
        /// How many of its tokens were taken over from another request.
        cached: usize,
    },
    /// The next token of the answer.
    Token {
        /// Which.
        id: u32,
        /// If it was asked for.
        score: Option<TokenScore>,
    },
    /// Nothing follows.
    End {
        /// Why.
        reason: FinishReason,
        /// A token that ends answers was drawn; it has no text, and was not said as [`Drawn::Token`].
        end_token: bool,
    },
    /// Nothing follows, and something went wrong.
    Failed(Failure),
}

/// Keys and values, and the memory that is promised for them.
pub(crate) struct Memory {
    pub(crate) cache: KvCache,
    pub(crate) room: Reservation,
}

/// A request that waits or runs.
pub(crate) struct Sequence {
    work: Work,
    /// What was drawn.
    drawn: Vec<u32>,
    /// Prompt and drawn tokens are never more.
    end: usize,
    /// Only while it runs.
    pub(crate) memory: Option<Memory>,
    /// How often its memory was taken away.
    pub(crate) interruptions: usize,
    started: bool,
    /// How many of the prompt's tokens were taken over from another request.
    pub(crate) cached: usize,
    /// When it came.
    since: Instant,
    /// Of the prompt's tokens, as far as they were read.
    prompt_scores: Vec<TokenScore>,
}

impl Sequence {
    /// A request to be answered, with at most `limit` tokens, the prompt counted.
    pub(crate) fn new(work: Work, limit: usize) -> Self {
        let wanted = work.max_tokens.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let end = work.prompt.len().saturating_add(wanted).min(limit);
        let prompt_scores = work.prompt.first().map(|id| TokenScore::of_first(*id)).into_iter().collect();
        Self {
            work,
            drawn: Vec::new(),
            end,
            memory: None,
            interruptions: 0,
            started: false,
            cached: 0,
            since: Instant::now(),
            prompt_scores,
        }
    }

    /// Tokens that were drawn for the answer.
    pub(crate) fn drawn_tokens(&self) -> usize {
        self.drawn.len()
    }

    pub(crate) fn project(&self) -> &Arc<str> {
        &self.work.project
    }

    /// Its prompt is read, and it has waited for its first place no longer.
    pub(crate) const fn has_started(&self) -> bool {
        self.started
    }

    /// How long ago it came.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Tokens of the prompt and the answer.
    fn len(&self) -> usize {
        self.work.prompt.len() + self.drawn.len()
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.work.out.is_closed()
    }

    pub(crate) fn prompt(&self) -> &[u32] {
        &self.work.prompt
    }

    pub(crate) fn adapter_id(&self) -> Option<AdapterKey> {
        self.resident().map(|resident| resident.id)
    }

    pub(crate) fn resident(&self) -> Option<&Arc<Resident>> {
        self.work.lease.as_ref().and_then(Lease::resident)
    }

    /// Tokens in the cache.
    pub(crate) fn fed(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.cache.len())
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.fed() < self.work.prompt.len()
    }

    /// How many tokens it has, and may come to have.
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.len(), self.end)
    }

    /// The tokens that go in next.
    fn next(&self) -> std::ops::Range<usize> {
        let fed = self.fed();
        let end = if self.is_reading() { ((fed / CHUNK + 1) * CHUNK).min(self.work.prompt.len()) } else { fed + 1 };
        fed..end
    }

    /// Tokens in the cache after the next step.
    pub(crate) fn needs(&self) -> usize {
        self.next().end
    }

    /// The next step leads to a token that is not known yet.
    pub(crate) fn draws_next(&self) -> bool {
        self.next().end == self.len()
    }

    /// The prompt's tokens must all be read here, so that each is scored.
    pub(crate) fn wants_prompt_scores(&self) -> bool {
        !self.started
            && self.work.prompt_scores
            && self.work.scores.is_some()
            && self.prompt_scores.len() < self.work.prompt.len()
    }

    /// How many rows of logits the next step gives.
    pub(crate) fn rows(&self) -> usize {
        if self.wants_prompt_scores() { self.next().len() } else { 1 }
    }

    /// Takes the logits of the step that began at token `from`: one row, or one for each token.
    pub(crate) fn score_prompt(&mut self, from: usize, logits: &[f32], width: usize) {
        let Some(top) = self.work.scores.filter(|_| self.wants_prompt_scores()) else { return };
        for (at, row) in (from + 1..).zip(logits.chunks_exact(width.max(1))) {
            // What was read before the memory was taken away is known already.
            if let Some(&id) = self.work.prompt.get(at).filter(|_| at == self.prompt_scores.len()) {
                self.prompt_scores.push(TokenScore::new(row, id, top));
            }
        }
    }

    /// The next step; `None` without memory.
    pub(crate) fn step<'a>(&'a mut self, adapter: Option<&'a LoraAdapter>) -> Option<Step<'a>> {
        let (next, every) = (self.next(), self.wants_prompt_scores());
        let cache = &mut self.memory.as_mut()?.cache;
        // A step is never of both: the prompt's last chunk ends with the prompt.
        let prompt = self.work.prompt.len();
        let ids = if next.end <= prompt {
            &self.work.prompt[next]
        } else {
            &self.drawn[next.start - prompt..next.end - prompt]
        };
        Some(Step { ids, cache, adapter, every })
    }

    /// Draws the next token; `true` if that was the last.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> bool {
        if !self.started {
            self.started = true;
            let scores = if self.work.prompt_scores { std::mem::take(&mut self.prompt_scores) } else { Vec::new() };
            self.say(Drawn::Started { scores, cached: self.cached });
        }
        if self.len() >= self.end {
            self.say(Drawn::End { reason: FinishReason::Length, end_token: false });
            return true;
        }
        let token = match self.choose(logits) {
            Ok(token) => token,
            Err(failure) => {
                self.fail(failure);
                return true;
            }
        };
        if self.work.stop_ids.contains(&token) {
            self.say(Drawn::End { reason: FinishReason::Stop, end_token: true });
            return true;
        }
        self.drawn.push(token);
        let score = self.work.scores.map(|top| TokenScore::new(logits, token, top));
        self.say(Drawn::Token { id: token, score });
        if let Some(constraint) = &mut self.work.constraint {
            match constraint.take(token) {
                Ok(false) => {}
                Ok(true) => {
                    self.say(Drawn::End { reason: FinishReason::Stop, end_token: false });
                    return true;
                }
                Err(why) => {
                    self.fail(why);
                    return true;
                }
            }
        }
        let full = self.len() >= self.end;
        if full {
            self.say(Drawn::End { reason: FinishReason::Length, end_token: false });
        }
        full
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, Failure> {
        let allowed = match &mut self.work.constraint {
            Some(constraint) => Some(constraint.allowed()?),
            None => None,
        };
        self.work.sampler.draw(logits, allowed.as_ref()).ok_or_else(|| {
            Failure::Internal("the model gave numbers that are not finite, or no token goes on in the grammar".into())
        })
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.say(Drawn::Failed(failure));
    }

    fn say(&self, what: Drawn) {
        let _ = self.work.out.send(what); // nobody listens: the engine sees that at its next turn
    }
}
