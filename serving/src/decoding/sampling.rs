//! Sampling of the next token: pure functions over one row of logits.
//!
//! A request's sampled tokens depend only on its seed and its logits. Another batch size changes the last bit of the
//! logits, so sampling is designed to be robust to rounding: each token gets Gumbel noise, generated from the seed, the
//! position in the answer and the token's ID, and the largest sum of log-probability and noise wins. Rounding decides
//! only if two sums agree to their last bits, while inverse-CDF sampling has a boundary at every token.
//!
//! Source: Maddison et al., arXiv:1411.0030, §2 (Gumbel-max).
//!
//! The parameters are applied in this order: `logit_bias`, `repetition_penalty`, `presence_penalty` and
//! `frequency_penalty`, the format's allowed tokens, `temperature`, `top_k`, `top_p`, `min_p`. Source: the order of
//! `GenerationMixin._get_logits_processor` of transformers 5.23, which has no presence and frequency penalties; vLLM's
//! sampler has them after the repetition penalty (`vllm/v1/sample/ops/penalties.py`).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use attune_domain::serve::Sampling;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use toktrie::SimpleVob;

use crate::decoding::filters::Filters;

/// The sampler of one answer's tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f64,
    filters: Filters,
    repetition_penalty: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    logit_bias: BTreeMap<u32, f64>,
    /// The tokens of the prompt and of the answer; only kept for the repetition penalty.
    seen: BTreeSet<u32>,
    /// The count of each sampled token; only kept for the presence and frequency penalties.
    sampled: BTreeMap<u32, u32>,
    random: Pcg64,
}

impl Sampler {
    /// Creates the sampler of answer number `choice` to `prompt` from a request's parameters.
    #[must_use]
    pub fn new(wishes: &Sampling, choice: u32, prompt: &[u32]) -> Self {
        let seen = if penalizes(wishes.repetition_penalty) { prompt } else { &[] };
        Self {
            temperature: wishes.temperature,
            filters: Filters { top_k: wishes.top_k, top_p: wishes.top_p, min_p: wishes.min_p },
            repetition_penalty: wishes.repetition_penalty,
            presence_penalty: wishes.presence_penalty,
            frequency_penalty: wishes.frequency_penalty,
            logit_bias: wishes.logit_bias.clone(),
            seen: seen.iter().copied().collect(),
            sampled: BTreeMap::new(),
            random: Pcg64::seed_from_u64(seed_of(wishes.seed, choice)),
        }
    }

    /// Samples the next token, from `allowed` if given. Returns `None` if no token is allowed, or if the logits are
    /// empty or hold a NaN or an infinity: the model is broken then, and any token would be arbitrary.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<u32> {
        most_likely(logits)?;
        let adjusted = self.adjusted(logits, allowed);
        let best = largest(&adjusted).filter(|best| adjusted[*best].is_finite())?;
        let token = self.picked(&adjusted, best);
        self.count(token);
        Some(token)
    }

    /// Counts a token of the answer for the penalties.
    fn count(&mut self, token: u32) {
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.sampled.entry(token).or_default() += 1;
        }
        if penalizes(self.repetition_penalty) {
            self.seen.insert(token);
        }
    }

    /// Returns the logits with biases and penalties; minus infinity for tokens that are not allowed.
    ///
    /// Sources: Keskar et al., arXiv:1909.05858, §4.1, as `RepetitionPenaltyLogitsProcessor` of transformers extends it
    /// to negative logits; "Parameter details" of OpenAI's guide to text generation: each token's logit less its count
    /// times the frequency penalty, and less the presence penalty if the count is above 0.
    fn adjusted<'a>(&self, logits: &'a [f32], allowed: Option<&SimpleVob>) -> Cow<'a, [f32]> {
        if self.logit_bias.is_empty() && self.seen.is_empty() && self.sampled.is_empty() && allowed.is_none() {
            return Cow::Borrowed(logits);
        }
        let mut adjusted = logits.to_vec();
        let mut change = |id: u32, changed: &dyn Fn(f64) -> f64| {
            if let Some(logit) = adjusted.get_mut(id as usize) {
                *logit = changed(f64::from(*logit)) as f32;
            }
        };
        self.logit_bias.iter().for_each(|(id, bias)| change(*id, &|logit| logit + bias));
        let penalty = self.repetition_penalty;
        let repeated = |logit: f64| if logit < 0.0 { logit * penalty } else { logit / penalty };
        self.seen.iter().for_each(|id| change(*id, &repeated));
        for (id, count) in &self.sampled {
            let penalty = self.presence_penalty + self.frequency_penalty * f64::from(*count);
            change(*id, &|logit| logit - penalty);
        }
        if let Some(allowed) = allowed {
            let known = allowed.len();
            for (id, logit) in adjusted.iter_mut().enumerate() {
                if id >= known || !allowed.get(id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Cow::Owned(adjusted)
    }

    fn picked(&mut self, logits: &[f32], best: usize) -> u32 {
        let picked = if self.temperature <= 0.0 {
            best
        } else {
            let place = self.random.random::<u64>();
            let log = |index: usize| self.relative_log(logits, best, index);
            let kept = match self.kept(logits, best) {
                None => gumbel_argmax(place, (0..logits.len()).map(|index| (index, log(index)))),
                Some(kept) => gumbel_argmax(place, kept.into_iter().map(|index| (index, log(index)))),
            };
            kept.unwrap_or(best)
        };
        u32::try_from(picked).unwrap_or(u32::MAX)
    }

    /// Returns the tokens that may be sampled; `None`: all of them.
    fn kept(&self, logits: &[f32], best: usize) -> Option<Vec<usize>> {
        if !self.filters.exclude_any() {
            return None;
        }
        let weights: Vec<f64> = (0..logits.len()).map(|index| self.relative_log(logits, best, index).exp()).collect();
        Some(self.filters.kept(&weights))
    }

    /// Returns the logarithm of a token's probability at the temperature, relative to that of the token `best`.
    fn relative_log(&self, logits: &[f32], best: usize, index: usize) -> f64 {
        f64::from(logits[index] - logits[best]) / self.temperature
    }
}

/// Returns whether a repetition penalty has an effect.
fn penalizes(repetition_penalty: f64) -> bool {
    (repetition_penalty - 1.0).abs() > 0.0
}

/// Returns an answer's seed. The first answer has the request's; those of the others are far from it and from each
/// other.
const fn seed_of(seed: u64, choice: u32) -> u64 {
    seed.wrapping_add((choice as u64).wrapping_mul(0xD134_2543_DE82_EF95))
}

/// Returns the index of the largest logit, the first of several equal ones, like `torch.argmax`; `None` if a logit is
/// not finite.
#[must_use]
pub fn most_likely(logits: &[f32]) -> Option<usize> {
    if logits.iter().all(|logit| logit.is_finite()) { largest(logits) } else { None }
}

/// Returns the index of the largest logit, the first of several equal ones.
fn largest(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    (!logits.is_empty()).then_some(best)
}

/// Returns the token with the largest sum of log-probability and Gumbel noise. The logarithms may lack a common
/// constant.
///
/// Tokens that cannot win are skipped without the logarithms of their noise, which is most of the cost.
fn gumbel_argmax(place: u64, tokens: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    // No noise is larger.
    const LARGEST: f64 = 38.0;
    // The noise of a uniform number up to COMMON is not larger than USUAL: -ln u ≥ 1 - u ≥ 2⁻¹⁰, and ln 2¹⁰ < 7.
    const USUAL: f64 = 7.0;
    const COMMON: f64 = 1.0 - 1.0 / 1024.0;
    let mut best: Option<(usize, f64)> = None;
    for (index, log) in tokens {
        let to_beat = best.map_or(f64::NEG_INFINITY, |(_, sum)| sum);
        if log + LARGEST <= to_beat {
            continue;
        }
        let uniform = uniform(place, index as u64);
        if uniform <= COMMON && log + USUAL <= to_beat {
            continue;
        }
        let sum = log + gumbel_noise(uniform);
        if sum > to_beat {
            best = Some((index, sum));
        }
    }
    best.map(|(index, _)| index)
}

/// Returns a number of the open interval (0, 1), deterministic in place and token.
fn uniform(place: u64, token: u64) -> f64 {
    // The finalizer of SplitMix64 (Steele et al., OOPSLA 2014) over a Weyl sequence that starts at `place`.
    let mut bits = place.wrapping_add((token + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    ((bits >> 11) as f64 + 0.5) * 2f64.powi(-53)
}

/// Returns noise from the standard Gumbel distribution for a uniform number of (0, 1).
fn gumbel_noise(uniform: f64) -> f64 {
    -(-uniform.ln()).ln()
}

pub(crate) mod speculative;

#[cfg(test)]
mod tests;
