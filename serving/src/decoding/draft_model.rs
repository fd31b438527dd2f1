//! The draft model: a smaller base that proposes the next tokens of answers, which the replica's base verifies in one
//! step ([`crate::decoding::sequence`]).
//!
//! It has KV caches of its own, in a pool of its own. A cache follows its sequence: tokens that the draft model has not
//! processed are fed before the next draft, long texts in chunks. Sequences of one project with a common beginning
//! share its blocks. A draft that fails, or that finds no memory, is left out; no answer depends on it.
//!
//! Drafts are made while few answers run ([`allowance`]), and for the sequences for which they pay
//! ([`crate::decoding::draft_length`]).

use std::time::{Duration, Instant};

use attune_model::{
    decoder::{Decoder, Step},
    error::ModelError,
    nn::kv_cache::{KvCache, KvPool},
};
use attune_process::{error_chain::chain, metrics::DRAFT_STEP_TIME};

use crate::decoding::{
    drafter::allowance,
    fair_queue::Scheduled,
    model_draft::Proposal,
    sequence::{CHUNK, Sequence},
};

/// The weight of the times before at each measurement.
const DECAY: f64 = 0.9;

/// A draft model and its memory.
pub(crate) struct DraftModel {
    decoder: Decoder,
    pool: KvPool,
    /// The number of tokens of the base: others are not proposed.
    vocabulary: usize,
    cost: StepCost,
}

/// A sequence whose draft is being made.
struct Drafted {
    /// The index of the sequence.
    at: usize,
    /// The tokens that the next step feeds.
    feed: Vec<u32>,
    /// `None`: the step only adds tokens to the cache.
    proposal: Option<Proposal>,
}

impl DraftModel {
    /// Creates a draft model for the base `target`.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub(crate) fn new(decoder: Decoder, pool: KvPool, target: &Decoder) -> Result<Self, ModelError> {
        let cost = StepCost::of_weights(decoder.weight_bytes()?, target.weight_bytes()?);
        let vocabulary = usize::try_from(target.architecture().vocab_size).unwrap_or(usize::MAX);
        Ok(Self { decoder, pool, vocabulary, cost })
    }

    /// Returns the pool of the caches.
    pub(crate) const fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Records the time of a step of the base in which answers are sampled and no prompt is processed.
    pub(crate) fn observe_target(&mut self, time: Duration) {
        self.cost.target.observe(time);
    }

    /// Proposes the next tokens of the answers among `members` of `running` that have no other draft.
    pub(crate) fn propose(&mut self, running: &mut [Sequence], members: &[usize]) {
        let answers = members.iter().filter(|at| running[**at].is_decoding()).count();
        let mut drafted = self.begin(running, members, allowance(answers));
        while drafted.iter().any(|draft| !draft.feed.is_empty()) {
            if let Err(why) = self.step(running, &mut drafted) {
                tracing::warn!(why = chain(&why), "a step of the draft model failed");
                return drafted.iter().for_each(|draft| running[draft.at].pause_model_draft());
            }
        }
        for Drafted { at, proposal, .. } in drafted {
            if let Some(proposal) = proposal {
                running[at].verify(proposal);
            }
        }
    }

    /// Begins drafts of at most `most` tokens each. One sequence at most has a long text to process, of which this adds
    /// a chunk.
    fn begin(&self, running: &mut [Sequence], members: &[usize], most: usize) -> Vec<Drafted> {
        let context = usize::try_from(self.decoder.architecture().max_position_embeddings).unwrap_or(usize::MAX);
        let (cost, mut is_reading) = (self.cost.ratio(), false);
        let mut drafted = Vec::new();
        if most == 0 {
            return drafted;
        }
        for &at in members {
            if !running[at].may_have_model_draft() {
                continue;
            }
            let length = running[at].model_draft_length(cost, most, context);
            if length == 0 {
                continue;
            }
            let cache = running[at].model_draft.cache.take().unwrap_or_else(|| self.new_cache(running, at));
            let mut feed = running[at].known().split_off(cache.len());
            let is_long = feed.len() > CHUNK;
            let has_memory = self.keep(&mut running[at], cache, feed.len().min(CHUNK) + length);
            if !has_memory || (is_long && is_reading) {
                continue;
            }
            is_reading |= is_long;
            feed.truncate(CHUNK);
            let proposal = (!is_long).then(|| running[at].propose(length));
            drafted.push(Drafted { at, feed, proposal });
        }
        drafted
    }

    /// Returns a new cache, with the longest beginning that another sequence of the project has.
    fn new_cache(&self, running: &[Sequence], at: usize) -> KvCache {
        let known = running[at].known();
        // The last token is fed, to get its logits.
        let most = known.len().saturating_sub(1);
        let others = running.iter().filter(|other| other.project() == running[at].project()).filter_map(|other| {
            let cache = other.model_draft.cache.as_ref()?;
            let same = known.iter().zip(other.known()).take_while(|(own, other)| *own == other).count();
            Some((same.min(most).min(cache.len()), cache))
        });
        match others.max_by_key(|(length, _)| *length) {
            Some((length, cache)) if length > 0 => cache.share_prefix(length),
            _ => self.pool.new_cache(),
        }
    }

    /// Keeps the cache of a sequence, with memory for `more` tokens. Returns `false` if there is none.
    fn keep(&self, sequence: &mut Sequence, mut cache: KvCache, more: usize) -> bool {
        let has_memory = cache.grow_to(cache.len() + more).unwrap_or(false);
        if has_memory {
            sequence.model_draft.cache = Some(cache);
        } else {
            sequence.pause_model_draft();
        }
        has_memory
    }

    /// Feeds the next tokens of all drafts, and samples the tokens after them.
    fn step(&mut self, running: &mut [Sequence], drafted: &mut [Drafted]) -> Result<(), ModelError> {
        let began = Instant::now();
        let mut steps = Vec::with_capacity(drafted.len());
        for (at, sequence) in running.iter_mut().enumerate() {
            let feed = drafted.iter().find(|draft| draft.at == at && !draft.feed.is_empty());
            if let (Some(Drafted { feed, .. }), Some(cache)) = (feed, &mut sequence.model_draft.cache) {
                steps.push(Step { ids: feed, cache, adapter: None, every: false });
            }
        }
        let logits = self.decoder.forward_cached(&mut steps)?; // [rows, v]
        drop(steps);
        let (rows, width) = logits.size2()?;
        let (rows, width) = (usize::try_from(rows).unwrap_or(0), usize::try_from(width).unwrap_or(0));
        let mut numbers = vec![0f32; rows * width];
        logits.f_copy_data(&mut numbers, rows * width)?;
        let fed = drafted.iter_mut().filter(|draft| !draft.feed.is_empty());
        let mut is_short = true;
        for (draft, row) in fed.zip(numbers.chunks_exact(width.max(1))) {
            is_short &= draft.feed.len() <= 2;
            let row = &row[..width.min(self.vocabulary)];
            let next = draft.proposal.as_mut().and_then(|proposal| proposal.sample(row));
            draft.feed = next.into_iter().collect();
        }
        DRAFT_STEP_TIME.observe([], began.elapsed().as_secs_f64());
        if is_short {
            self.cost.draft.observe(began.elapsed());
        }
        Ok(())
    }
}

/// The time of a step of the draft relative to one of the base.
#[derive(Debug)]
struct StepCost {
    draft: MeanTime,
    target: MeanTime,
    /// The cost before both are measured: decoding reads all weights once for a step.
    of_weights: f64,
}

/// A mean of the last times.
#[derive(Debug, Default)]
struct MeanTime(Option<f64>);

impl MeanTime {
    fn observe(&mut self, time: Duration) {
        let time = time.as_secs_f64();
        self.0 = Some(self.0.map_or(time, |mean| DECAY * mean + (1.0 - DECAY) * time));
    }
}

impl StepCost {
    fn of_weights(draft: usize, target: usize) -> Self {
        let of_weights = draft as f64 / target.max(1) as f64;
        Self { draft: MeanTime::default(), target: MeanTime::default(), of_weights }
    }

    fn ratio(&self) -> f64 {
        match (self.draft.0, self.target.0) {
            (Some(draft), Some(target)) if target > 0.0 => draft / target,
            _ => self.of_weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_that_of_the_weights_until_both_are_measured() {
        let mut cost = StepCost::of_weights(10, 40);
        let close = |cost: &StepCost, want: f64| assert!((cost.ratio() - want).abs() < 1e-9, "{cost:?}");
        close(&cost, 0.25);
        cost.draft.observe(Duration::from_millis(3));
        close(&cost, 0.25);
        cost.target.observe(Duration::from_millis(30));
        close(&cost, 0.1);
        cost.target.observe(Duration::from_millis(60)); // a mean of 33 ms
        close(&cost, 3.0 / 33.0);
    }
}
