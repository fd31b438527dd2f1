//! One sequence's part in the drafts of a model.

use super::Sequence;
use crate::{answering::grammar::Constraint, decoding::model_draft::Proposal};

impl Sequence {
    /// Returns the prompt and the sampled tokens.
    pub(crate) fn known(&self) -> Vec<u32> {
        [&*self.work.prompt, self.sampled.as_slice()].concat()
    }

    /// Returns whether a draft model may propose the next tokens: they are sampled, and no other draft is verified.
    pub(crate) fn may_have_model_draft(&self) -> bool {
        self.is_decoding() && self.verifying.is_empty()
    }

    /// Returns the length of the draft that a model with `context` positions makes, where a step of it takes `cost`
    /// times as long as one of the base. 0: none.
    pub(crate) fn model_draft_length(&mut self, cost: f64, most: usize, context: usize) -> usize {
        let most = self.most_drafted(most).min(context.saturating_sub(self.len() + 1));
        self.model_draft.length.next(cost, most)
    }

    /// Begins a draft of at most `most` tokens after the known ones.
    pub(crate) fn propose(&self, most: usize) -> Proposal {
        let constraint = self.work.constraint.as_ref().map(Constraint::fork);
        Proposal::new(self.work.sampler.for_draft(), constraint, self.work.stop_ids.clone(), most)
    }

    /// Has the next step verify a draft, if it has tokens.
    pub(crate) fn verify(&mut self, proposal: Proposal) {
        let last = self.sampled.last().or_else(|| self.work.prompt.last()).copied();
        let (tokens, distributions) = proposal.into_parts();
        if let (Some(last), false) = (last, tokens.is_empty()) {
            self.verifying = [&[last][..], tokens.as_slice()].concat();
            self.model_draft.proposed = Some(distributions);
        }
    }

    /// Drops the draft model's cache, and makes no drafts for some steps.
    pub(crate) fn pause_model_draft(&mut self) {
        self.model_draft.cache = None;
        self.model_draft.length.pause();
    }
}
