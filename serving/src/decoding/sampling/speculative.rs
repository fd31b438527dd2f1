//! Speculative sampling: a draft model's sampler proposes a token, and the answer's sampler accepts or replaces it.
//!
//! With the distribution `q` of the draft and `p` of the answer, both after biases, penalties, the format's allowed
//! tokens, temperature and filters: a token `x` of `q` is accepted with the probability `min(1, p(x) / q(x))`;
//! otherwise a token is sampled from `max(0, p - q)`, normalized. The token then has the distribution `p`, whatever `q`
//! is. At temperature 0 both distributions are 1 at one token, and a draft is accepted if the tokens are equal.
//!
//! Source: Leviathan et al., arXiv:2211.17192, §2.2, §2.3 and Appendix A.1.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use toktrie::SimpleVob;

use super::{Sampler, gumbel_argmax, largest, most_likely};

/// Separates the random numbers of a draft from those of the answer: `q`'s token must not depend on the latter.
const OF_DRAFTS: u64 = 0x6A09_E667_F3BC_C909;

/// A token that a draft model proposes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proposed<'a> {
    /// The token's ID.
    pub(crate) token: u32,
    /// The distribution that it was sampled from: the probability of each token.
    pub(crate) distribution: &'a [f64],
}

impl Sampler {
    /// Returns whether the most likely token is always chosen.
    pub(crate) const fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Returns a sampler for the draft after the tokens so far: with the same parameters and counts, and with other
    /// random numbers.
    pub(crate) fn for_draft(&self) -> Self {
        let mut next = self.clone();
        next.random = Pcg64::seed_from_u64(next.random.random::<u64>() ^ OF_DRAFTS);
        next
    }

    /// Samples a token of the draft from the draft model's logits, and returns it with its distribution, which is empty
    /// at temperature 0. Returns `None` where [`Sampler::sample`] does.
    pub(crate) fn propose(&mut self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<(u32, Vec<f64>)> {
        if self.is_greedy() {
            return Some((self.sample(logits, allowed)?, Vec::new()));
        }
        let distribution = self.distribution(logits, allowed)?;
        let token = self.sample_from(distribution.iter().copied())?;
        self.count(token);
        Some((token, distribution))
    }

    /// Samples the next token as [`Sampler::sample`] does, and prefers the proposed one as far as its distribution
    /// allows. A token other than the proposed one means that it is rejected.
    pub(crate) fn verify(
        &mut self,
        logits: &[f32],
        allowed: Option<&SimpleVob>,
        proposed: Proposed<'_>,
    ) -> Option<u32> {
        let wanted = self.distribution(logits, allowed)?;
        let at = |distribution: &[f64], index: usize| distribution.get(index).copied().unwrap_or(0.0);
        let place = proposed.token as usize;
        let uniform = self.random.random::<f64>(); // in [0, 1)
        let token = if uniform * at(proposed.distribution, place) < at(&wanted, place) {
            proposed.token
        } else {
            let rest = wanted.iter().enumerate().map(|(index, p)| (p - at(proposed.distribution, index)).max(0.0));
            // A rejected token has `p < q`, so another one has `p > q`, but for the rounding of their sums.
            match self.sample_from(rest) {
                Some(token) => token,
                None => self.sample_from(wanted.iter().copied())?,
            }
        };
        self.count(token);
        Some(token)
    }

    /// Returns the probability of each token, at a temperature above 0.
    fn distribution(&self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<Vec<f64>> {
        most_likely(logits)?;
        let adjusted = self.adjusted(logits, allowed);
        let best = largest(&adjusted).filter(|best| adjusted[*best].is_finite())?;
        let mut weights: Vec<f64> =
            (0..adjusted.len()).map(|index| self.relative_log(&adjusted, best, index).exp()).collect();
        if self.filters.exclude_any() {
            let mut kept = vec![0.0; weights.len()];
            self.filters.kept(&weights).into_iter().for_each(|index| kept[index] = weights[index]);
            weights = kept;
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Some(weights)
    }

    /// Samples a token in proportion to its weight; `None`: all weights are 0.
    fn sample_from(&mut self, weights: impl Iterator<Item = f64>) -> Option<u32> {
        let place = self.random.random::<u64>();
        let likely = weights.enumerate().filter(|(_, weight)| *weight > 0.0);
        gumbel_argmax(place, likely.map(|(index, weight)| (index, weight.ln()))).and_then(|index| index.try_into().ok())
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::Sampling;

    use super::*;

    /// The logits of two models over eight tokens.
    const OF_MODEL: [f32; 8] = [1.2, -0.3, 0.8, 0.1, -1.5, 0.4, -0.2, 1.9];
    const OF_DRAFT: [f32; 8] = [0.2, 1.1, 0.9, -0.6, -0.4, 0.3, 1.3, 1.0];

    /// Pearson's chi-square test with at most 7 degrees of freedom: the statistic is above 29.9 in one of 10,000 runs
    /// if the counts have the distribution. Tokens without probability must not occur.
    fn assert_distributed(counts: &[u32], want: &[f64], what: &str) {
        let runs: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        let mut statistic = 0.0;
        for (count, p) in counts.iter().zip(want) {
            if *p > 0.0 {
                statistic += (f64::from(*count) - runs * p).powi(2) / (runs * p);
            } else {
                assert_eq!(*count, 0, "{what}");
            }
        }
        assert!(statistic < 29.9, "{what}: {statistic} {counts:?} {want:?}");
    }

    /// Counts verified tokens, accepted drafts among them, over many seeds.
    fn verified(wishes: &Sampling, draft: &[f32], runs: u64) -> ([u32; 8], u32) {
        let (mut counts, mut accepted) = ([0; 8], 0);
        for seed in 0..runs {
            let mut sampler = Sampler::new(&Sampling { seed, ..wishes.clone() }, 0, &[7, 2]);
            let (token, distribution) = sampler.for_draft().propose(draft, None).unwrap();
            let proposed = Proposed { token, distribution: &distribution };
            let verified = sampler.verify(&OF_MODEL, None, proposed).unwrap();
            counts[verified as usize] += 1;
            accepted += u32::from(verified == token);
        }
        (counts, accepted)
    }

    /// Each transformation applies to both distributions, and leaves that of the answer as it is without a draft.
    #[test]
    fn verified_tokens_have_the_distribution_of_the_answer() {
        const RUNS: u64 = 20_000;
        let free = Sampling::default();
        let cases = [
            free.clone(),
            Sampling { temperature: 0.6, ..free.clone() },
            Sampling { temperature: 1.7, top_k: Some(4), ..free.clone() },
            Sampling { top_p: 0.7, ..free.clone() },
            Sampling { min_p: 0.3, ..free.clone() },
            Sampling { repetition_penalty: 1.8, ..free.clone() },
            Sampling { logit_bias: [(4, 3.0), (7, -2.0)].into(), ..free.clone() },
        ];
        for wishes in cases {
            let sampler = Sampler::new(&wishes, 0, &[7, 2]);
            let want = sampler.distribution(&OF_MODEL, None).unwrap();
            let drafts = sampler.distribution(&OF_DRAFT, None).unwrap();
            let (counts, accepted) = verified(&wishes, &OF_DRAFT, RUNS);
            assert_distributed(&counts, &want, &format!("{wishes:?}"));
            // The rate of acceptance is the sum of the smaller probabilities (Leviathan et al., corollary 3.6); six
            // standard deviations are at most 0.022.
            let rate = want.iter().zip(&drafts).map(|(p, q)| p.min(*q)).sum::<f64>();
            assert!((f64::from(accepted) / RUNS as f64 - rate).abs() < 0.022, "{accepted} {rate} {wishes:?}");
        }
    }

    /// The distribution without a draft, by the sampler that answers have then.
    #[test]
    fn the_distribution_is_that_of_the_sampler() {
        for wishes in [Sampling::default(), Sampling { temperature: 0.8, top_p: 0.9, ..Sampling::default() }] {
            let want = Sampler::new(&wishes, 0, &[]).distribution(&OF_MODEL, None).unwrap();
            let mut counts = [0; 8];
            for seed in 0..20_000 {
                let mut sampler = Sampler::new(&Sampling { seed, ..wishes.clone() }, 0, &[]);
                counts[sampler.sample(&OF_MODEL, None).unwrap() as usize] += 1;
            }
            assert_distributed(&counts, &want, &format!("{wishes:?}"));
        }
    }

    #[test]
    fn a_draft_of_the_same_distribution_is_always_accepted() {
        let wishes = Sampling { temperature: 1.1, top_p: 0.9, ..Sampling::default() };
        assert_eq!(verified(&wishes, &OF_MODEL, 2000).1, 2000);
    }

    /// A token that the answer cannot have is never accepted, and one that the draft cannot have still occurs.
    #[test]
    fn distributions_without_a_common_token_are_verified() {
        let model = [0.0, 0.0, -1e9, -1e9];
        let draft = [-1e9, -1e9, 0.0];
        let mut counts = [0u32; 4];
        for seed in 0..2000 {
            let mut sampler = Sampler::new(&Sampling { seed, ..Sampling::default() }, 0, &[]);
            let (token, distribution) = sampler.for_draft().propose(&draft, None).unwrap();
            assert_eq!(token, 2);
            let verified = sampler.verify(&model, None, Proposed { token, distribution: &distribution }).unwrap();
            counts[verified as usize] += 1;
        }
        assert_eq!((counts[2], counts[3]), (0, 0));
        assert_distributed(&counts, &[0.5, 0.5, 0.0, 0.0], "two tokens");
    }

    #[test]
    fn allowed_tokens_hold_for_both_and_logits_that_are_not_finite_give_none() {
        let mut allowed = SimpleVob::alloc(8);
        allowed.set(1, true);
        allowed.set(4, true);
        let mut sampler = Sampler::new(&Sampling::default(), 0, &[]);
        let (token, distribution) = sampler.for_draft().propose(&OF_DRAFT, Some(&allowed)).unwrap();
        assert!([1, 4].contains(&token) && distribution.iter().filter(|p| **p > 0.0).count() == 2);
        let proposed = Proposed { token, distribution: &distribution };
        assert!([1, 4].contains(&sampler.verify(&OF_MODEL, Some(&allowed), proposed).unwrap()));
        assert_eq!(sampler.verify(&[f32::NAN; 8], None, proposed), None);
        assert!(sampler.propose(&[f32::INFINITY; 8], None).is_none());
    }
}
