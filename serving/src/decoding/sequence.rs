//! One sequence in the engine: its tokens, its KV cache, and its limits.
//!
//! The engine may preempt a sequence and drop its cache when memory is short. The tokens are kept and later fed again:
//! the prompt in the same chunks, sampled tokens one by one. So preemption does not change the answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_domain::{
    memory::PREFILL_TOKENS,
    serve::{AdapterKey, FinishReason, Priority},
};
use attune_model::{adapter::LoraAdapter, decoder::Step, nn::kv_cache::KvCache};
use attune_process::metrics::{FIRST_TOKEN, GENERATED_TOKENS};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    adapters::{Lease, Resident},
    answering::grammar::Constraint,
    decoding::{
        counters::{INPUT_PRICE, OUTPUT_PRICE},
        drafter::Drafter,
        fair_queue::Scheduled,
        model_draft::ModelDraft,
        sampling::{Sampler, speculative::Proposed},
        scores::TokenScore,
    },
    error::Failure,
};

/// The maximum number of prompt tokens in one step, so that running answers do not wait long. Chunks always end at
/// multiples of it: then a prefix that another request processed has, to the last bit, the values that it would have
/// here.
pub const CHUNK: usize = PREFILL_TOKENS as usize;

/// A request to the engine for one answer.
pub struct GenerateJob {
    /// The ID of the project that sent the request.
    pub project: Arc<str>,
    /// The priority class.
    pub priority: Priority,
    /// The prompt's token IDs. Not empty.
    pub prompt: Arc<[u32]>,
    /// The adapter. `None`: the base model alone.
    pub lease: Option<Lease>,
    /// The sampler of the answer's tokens.
    pub sampler: Sampler,
    /// The maximum number of generated tokens.
    pub max_tokens: Option<u64>,
    /// The token IDs that end the answer.
    pub stop_ids: Vec<u32>,
    /// The grammar that the answer must match.
    pub constraint: Option<Constraint>,
    /// The number of top log-probabilities to return per token. `None`: no log-probabilities.
    pub scores: Option<usize>,
    /// `true`: return the log-probabilities of the prompt's tokens too.
    pub prompt_scores: bool,
    /// The channel for the results. Dropping the receiver cancels the request.
    pub out: UnboundedSender<EngineEvent>,
}

/// An event of a [`GenerateJob`].
#[derive(Debug)]
pub enum EngineEvent {
    /// The prompt is processed.
    Started {
        /// The scores of the prompt's tokens, if they were requested.
        scores: Vec<TokenScore>,
        /// The number of prompt tokens whose keys and values are those of another request.
        cached: usize,
        /// The time that the request waited for its first step.
        queued: Duration,
    },
    /// The next token of the answer.
    Token {
        /// The token's ID.
        id: u32,
        /// The token's score, if it was requested.
        score: Option<TokenScore>,
    },
    /// The answer is complete. No event follows.
    End {
        /// The finish reason.
        reason: FinishReason,
        /// `true` if a stop token was sampled. It has no text and no token event.
        end_token: bool,
        /// The stop token's score, if scores were requested.
        score: Option<TokenScore>,
        /// The number of tokens that drafts gave: each was sampled in the pass of the token before it.
        from_drafts: u64,
    },
    /// The request failed. No event follows.
    Failed(Failure),
}

/// A waiting or running request.
pub(crate) struct Sequence {
    work: GenerateJob,
    /// The sampled tokens.
    sampled: Vec<u32>,
    /// The maximum number of prompt and sampled tokens together.
    end: usize,
    /// The KV cache. `Some` only while the sequence runs.
    pub(crate) cache: Option<KvCache>,
    /// The number of times that the sequence was preempted.
    pub(crate) interruptions: usize,
    started: bool,
    /// The number of prompt tokens whose keys and values were always those of other requests, and never computed for
    /// this one. `None`: no cache yet.
    cached: Option<usize>,
    /// The number of prompt tokens whose work is priced. After a preemption they are processed again at no price.
    priced: usize,
    /// The time of arrival.
    since: Instant,
    /// The time that the request waited for its first step; `None`: it still waits.
    queued: Option<Duration>,
    /// The scores of the prompt's tokens that have been processed.
    prompt_scores: Vec<TokenScore>,
    drafter: Drafter,
    /// The state of drafts by a model.
    pub(crate) model_draft: ModelDraft,
    /// The last token and the draft after it, which the next step verifies. Empty: no draft.
    verifying: Vec<u32>,
    /// The number of accepted tokens of drafts whose price is not charged yet.
    unpriced: u64,
    /// The number of tokens that were sampled in the pass of the token before them.
    from_drafts: u64,
}

impl Sequence {
    /// Creates a sequence of at most `limit` tokens, the prompt included.
    pub(crate) fn new(work: GenerateJob, limit: usize) -> Self {
        let wanted = work.max_tokens.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let end = work.prompt.len().saturating_add(wanted).min(limit);
        let prompt_scores = work.prompt.first().map(|id| TokenScore::of_first(*id)).into_iter().collect();
        Self {
            work,
            sampled: Vec::new(),
            end,
            cache: None,
            interruptions: 0,
            started: false,
            cached: None,
            priced: 0,
            since: Instant::now(),
            queued: None,
            prompt_scores,
            drafter: Drafter::default(),
            model_draft: ModelDraft::default(),
            verifying: Vec::new(),
            unpriced: 0,
            from_drafts: 0,
        }
    }

    /// Returns whether the prompt has been processed, so that the sequence no longer waits for its first slot.
    pub(crate) const fn has_started(&self) -> bool {
        self.started
    }

    /// Returns the time since arrival.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Drops the memory of keys and values, when the sequence is preempted.
    pub(crate) fn release(&mut self) {
        self.cache = None;
        self.model_draft.cache = None;
        self.interruptions += 1;
    }

    /// Returns the number of prompt and sampled tokens.
    fn len(&self) -> usize {
        self.work.prompt.len() + self.sampled.len()
    }

    /// Returns whether the receiver of the answer was dropped.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.work.out.is_closed()
    }

    pub(crate) fn prompt(&self) -> &[u32] {
        &self.work.prompt
    }

    /// Counts the prompt tokens that the first cache shares, or that after a preemption.
    pub(crate) fn count_cached(&mut self, shared: usize) {
        if !self.started {
            self.cached = Some(self.cached.map_or(shared, |cached| cached.min(shared)));
        }
    }

    pub(crate) fn resident(&self) -> Option<&Arc<Resident>> {
        self.work.lease.as_ref().and_then(Lease::resident)
    }

    /// Returns the number of tokens in the cache.
    pub(crate) fn fed(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::len)
    }

    /// Returns the current and the maximum number of tokens.
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.len(), self.end)
    }

    /// Returns the range of the tokens that the next step feeds.
    fn next(&self) -> std::ops::Range<usize> {
        let fed = self.fed();
        let end = if self.is_reading() {
            ((fed / CHUNK + 1) * CHUNK).min(self.work.prompt.len())
        } else {
            fed + self.verifying.len().max(1)
        };
        fed..end
    }

    /// Returns the number of tokens in the cache after the next step.
    pub(crate) fn needs(&self) -> usize {
        self.next().end
    }

    /// Returns the price of the next step's work: its new prompt tokens, and the token that it samples at least.
    pub(crate) fn price(&mut self) -> u64 {
        let next = self.next();
        let end = next.end.min(self.work.prompt.len());
        let tokens = end.saturating_sub(self.priced.max(next.start));
        self.priced = self.priced.max(end);
        tokens as u64 * INPUT_PRICE + u64::from(self.samples_next()) * OUTPUT_PRICE
    }

    /// Returns whether the next step ends with the last known token, so that a new token is sampled.
    pub(crate) fn samples_next(&self) -> bool {
        self.next().end >= self.len()
    }

    /// Returns whether prompt tokens still have to be scored, which requires that all of them are processed here.
    pub(crate) fn wants_prompt_scores(&self) -> bool {
        !self.started
            && self.work.prompt_scores
            && self.work.scores.is_some()
            && self.prompt_scores.len() < self.work.prompt.len()
    }

    /// Returns the number of rows of logits that the next step returns.
    pub(crate) fn rows(&self) -> usize {
        if self.wants_every_row() { self.next().len() } else { 1 }
    }

    /// Returns whether the next step returns logits after each of its tokens.
    fn wants_every_row(&self) -> bool {
        self.wants_prompt_scores() || !self.verifying.is_empty()
    }

    /// Scores prompt tokens from the logits of the step that began at token `from`: one row, or one per token.
    pub(crate) fn score_prompt(&mut self, from: usize, logits: &[f32], width: usize) {
        let Some(top) = self.work.scores.filter(|_| self.wants_prompt_scores()) else { return };
        for (at, row) in (from + 1..).zip(logits.chunks_exact(width.max(1))) {
            // Tokens that were processed before a preemption are already scored.
            if let Some(&id) = self.work.prompt.get(at).filter(|_| at == self.prompt_scores.len()) {
                self.prompt_scores.push(TokenScore::new(row, id, top));
            }
        }
    }

    /// Returns the next step, or `None` without a cache.
    pub(crate) fn step<'a>(&'a mut self, adapter: Option<&'a LoraAdapter>) -> Option<Step<'a>> {
        let (next, every) = (self.next(), self.wants_every_row());
        self.queued.get_or_insert_with(|| self.since.elapsed());
        let cache = self.cache.as_mut()?;
        // A step never contains both kinds of tokens: the prompt's last chunk ends with the prompt.
        let prompt = self.work.prompt.len();
        let ids = match self.verifying.as_slice() {
            [] if next.end <= prompt => &self.work.prompt[next],
            [] => &self.sampled[next.start - prompt..next.end - prompt],
            verifying => verifying,
        };
        Some(Step { ids, cache, adapter, every })
    }

    /// Samples the next token, or verifies the one that a draft model proposes. Returns whether the sequence is
    /// finished.
    pub(crate) fn sample(&mut self, logits: &[f32], proposed: Option<Proposed<'_>>) -> bool {
        if !self.started {
            self.started = true;
            let scores = if self.work.prompt_scores { std::mem::take(&mut self.prompt_scores) } else { Vec::new() };
            let (cached, queued) = (self.cached.unwrap_or(0), self.queued.unwrap_or_default());
            self.send(EngineEvent::Started { scores, cached, queued });
        }
        if self.len() >= self.end {
            self.send_end(FinishReason::Length, false, None);
            return true;
        }
        let token = match self.choose(logits, proposed) {
            Ok(token) => token,
            Err(failure) => {
                self.fail(failure);
                return true;
            }
        };
        if self.work.stop_ids.contains(&token) {
            let score = self.work.scores.map(|top| TokenScore::new(logits, token, top));
            self.send_end(FinishReason::Stop, true, score);
            return true;
        }
        self.sampled.push(token);
        GENERATED_TOKENS.inc([]);
        if self.sampled.len() == 1 {
            FIRST_TOKEN.observe([], self.age().as_secs_f64());
        }
        let score = self.work.scores.map(|top| TokenScore::new(logits, token, top));
        self.send(EngineEvent::Token { id: token, score });
        if let Some(constraint) = &mut self.work.constraint {
            match constraint.take(token) {
                Ok(false) => {}
                Ok(true) => {
                    self.send_end(FinishReason::Stop, false, None);
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
            self.send_end(FinishReason::Length, false, None);
        }
        full
    }

    fn choose(&mut self, logits: &[f32], proposed: Option<Proposed<'_>>) -> Result<u32, Failure> {
        let allowed = match &mut self.work.constraint {
            Some(constraint) => Some(constraint.allowed()?),
            None => None,
        };
        let sampler = &mut self.work.sampler;
        let token = match proposed {
            Some(proposed) => sampler.verify(logits, allowed.as_ref(), proposed),
            None => sampler.sample(logits, allowed.as_ref()),
        };
        token.ok_or_else(|| Failure::Internal("the logits are not finite, or the grammar allows no next token".into()))
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.send(EngineEvent::Failed(failure));
    }

    fn send_end(&self, reason: FinishReason, end_token: bool, score: Option<TokenScore>) {
        self.send(EngineEvent::End { reason, end_token, score, from_drafts: self.from_drafts });
    }

    fn send(&self, what: EngineEvent) {
        let _ = self.work.out.send(what); // if the receiver is gone, the engine notices at its next iteration
    }
}

impl Scheduled for Sequence {
    fn project(&self) -> &Arc<str> {
        &self.work.project
    }

    fn adapter(&self) -> Option<AdapterKey> {
        self.resident().map(|resident| resident.id)
    }

    fn priority(&self) -> Priority {
        self.work.priority
    }

    fn is_reading(&self) -> bool {
        self.fed() < self.work.prompt.len()
    }

    fn sampled_tokens(&self) -> usize {
        self.sampled.len()
    }
}

mod proposing;
mod speculation;

#[cfg(test)]
mod tests;
