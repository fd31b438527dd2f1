//! The state of one sequence's drafts by a model, and a draft that is being sampled.

use attune_model::nn::kv_cache::KvCache;

use crate::{
    answering::grammar::Constraint,
    decoding::{draft_length::DraftLength, sampling::Sampler},
};

/// A sequence's state of its drafts by a model.
#[derive(Debug, Default)]
pub(crate) struct ModelDraft {
    /// The draft model's KV cache: of the first of the known tokens. `None`: none yet, or memory was short.
    pub(crate) cache: Option<KvCache>,
    /// The length of the drafts.
    pub(crate) length: DraftLength,
    /// The distributions of the tokens that the next step verifies, none at temperature 0. `None`: those tokens are not
    /// from a model.
    pub(crate) proposed: Option<Vec<Vec<f64>>>,
}

/// A draft that is being sampled.
pub(crate) struct Proposal {
    sampler: Sampler,
    constraint: Option<Constraint>,
    stop_ids: Vec<u32>,
    tokens: Vec<u32>,
    distributions: Vec<Vec<f64>>,
    /// The maximum number of tokens.
    most: usize,
}

impl Proposal {
    /// Begins a draft of at most `most` tokens, which `stop_ids` end.
    pub(crate) const fn new(sampler: Sampler, constraint: Option<Constraint>, stop_ids: Vec<u32>, most: usize) -> Self {
        Self { sampler, constraint, stop_ids, tokens: Vec::new(), distributions: Vec::new(), most }
    }

    /// Returns the tokens, and their distributions, none at temperature 0.
    pub(crate) fn into_parts(self) -> (Vec<u32>, Vec<Vec<f64>>) {
        (self.tokens, self.distributions)
    }

    /// Samples the next token of the draft from the draft model's logits. Returns it if another one may follow.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let allowed = match &mut self.constraint {
            Some(constraint) => Some(constraint.allowed().ok()?),
            None => None,
        };
        let (token, distribution) = self.sampler.propose(logits, allowed.as_ref())?;
        self.tokens.push(token);
        if !self.sampler.is_greedy() {
            self.distributions.push(distribution);
        }
        let ends = match &mut self.constraint {
            Some(constraint) => constraint.take(token).unwrap_or(true),
            None => false,
        };
        (!ends && !self.stop_ids.contains(&token) && self.tokens.len() < self.most).then_some(token)
    }
}
