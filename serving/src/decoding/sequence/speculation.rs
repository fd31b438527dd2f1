//! Speculative decoding of one sequence: a step feeds the last token and a draft, and its logits verify the draft.
//!
//! Source: Leviathan et al., arXiv:2211.17192, §2.3 and Appendix A.1. A draft from earlier text is deterministic, so
//! its distribution is 1 at its token `x`: `x` is accepted with the model's probability `p(x)`, and otherwise the token
//! is sampled from `p` without `x`. One sample does both: the token is sampled from `p` as without a draft
//! ([`crate::decoding::sampling`]), and `x` is accepted if it is that token. That is so with probability `p(x)`, and
//! any other token has the distribution of `p` without `x`. Hence every token uses the same random numbers, penalties,
//! filters and grammar as without drafts, and the same logits give the same answer, not only the same distribution.
//!
//! A draft model samples its tokens. At temperature 0 they are verified as those of earlier text, and the answer is the
//! same. At a higher one they are accepted by their distribution ([`crate::decoding::sampling::speculative`]), and the
//! answer has the same distribution; its tokens also depend on the lengths of the drafts, and so on the load.
//!
//! The logits of a step with several tokens are those of single tokens to the last bit if the base is computed from its
//! codes, the adapter has no DoRA, and the pass has at most [`attune_model::nn::low_rank::FEW_ROWS`] rows. Otherwise
//! the order of sums may differ, as between batches of different sizes: a token changes only if two candidates agree to
//! their last bits.

use attune_model::nn::kv_cache::KvCache;
use attune_process::metrics::{ACCEPTED_DRAFT_TOKENS, DRAFT_TOKENS};

use super::Sequence;
use crate::decoding::{counters::OUTPUT_PRICE, fair_queue::Scheduled, sampling::speculative::Proposed};

impl Sequence {
    /// Returns whether the next step feeds the last sampled token.
    pub(crate) fn is_decoding(&self) -> bool {
        self.started && !self.is_reading() && self.samples_next()
    }

    /// Prepares a draft of at most `most` tokens, within the memory of the cache and the length of the answer.
    pub(crate) fn draft(&mut self, most: usize) {
        let most = self.most_drafted(most);
        if most == 0 {
            return;
        }
        let known = self.known();
        let draft = self.drafter.propose(&known, most);
        if let (Some(last), false) = (known.last(), draft.is_empty()) {
            self.verifying = [&[*last][..], draft.as_slice()].concat();
        }
    }

    /// Returns the maximum length of a draft within the memory of the cache and the length of the answer.
    pub(super) fn most_drafted(&self, most: usize) -> usize {
        let capacity = self.cache.as_ref().map_or(0, KvCache::capacity);
        // The step also feeds the last token, and samples one token after the draft.
        most.min(capacity.saturating_sub(self.len())).min(self.end.saturating_sub(self.len() + 1))
    }

    /// Samples the tokens after a step from its logits, `width` per row: those of the draft that are accepted, and one
    /// more. Returns whether the sequence is finished.
    pub(crate) fn sample_after(&mut self, logits: &[f32], width: usize) -> bool {
        let (verifying, model) = (std::mem::take(&mut self.verifying), self.model_draft.proposed.take());
        let Some(drafted) = verifying.len().checked_sub(1) else {
            return self.sample(&logits[logits.len().saturating_sub(width)..], None);
        };
        let before = self.sampled.len();
        let (mut done, mut accepted) = (false, 0);
        for (at, row) in logits.chunks_exact(width.max(1)).enumerate() {
            self.unpriced += u64::from(at > 0);
            self.from_drafts += u64::from(at > 0);
            let proposed = verifying.get(at + 1);
            let distribution = model.as_ref().and_then(|distributions| distributions.get(at));
            let with_distribution = proposed.zip(distribution);
            done = self.sample(row, with_distribution.map(|(&token, distribution)| Proposed { token, distribution }));
            let sampled = self.sampled.get(before + at);
            let is_accepted = sampled.is_some() && sampled == proposed;
            accepted += usize::from(is_accepted);
            if done || !is_accepted {
                break;
            }
        }
        // The last token is fed by the next step, and the rejected ones are not part of the answer.
        let len = self.len().saturating_sub(1);
        for cache in self.cache.iter_mut().chain(&mut self.model_draft.cache) {
            cache.truncate(len);
        }
        let source = if model.is_some() {
            self.model_draft.length.observe(drafted, accepted);
            "model"
        } else {
            self.drafter.observe(drafted, accepted);
            "text"
        };
        DRAFT_TOKENS.add([source], drafted as f64);
        ACCEPTED_DRAFT_TOKENS.add([source], accepted as f64);
        done
    }

    /// Returns the price of the tokens that the last step sampled in addition to its first.
    pub(crate) fn accepted_price(&mut self) -> u64 {
        std::mem::take(&mut self.unpriced) * OUTPUT_PRICE
    }
}
