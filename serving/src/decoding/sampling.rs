//! Sampling of the next token: pure functions over one row of logits.
//!
//! A request's sampled tokens depend only on its seed and its logits. Another batch size changes the last bit of the
//! logits, so sampling is designed to be robust to rounding: each token gets Gumbel noise, generated from the seed, the
//! position in the answer and the token's ID, and the largest sum of log-probability and noise wins. Rounding decides
//! only if two sums agree to their last bits, while inverse-CDF sampling has a boundary at every token.
//!
//! Source: Maddison et al., arXiv:1411.0030, §2 (Gumbel-max).

use std::{borrow::Cow, collections::BTreeMap};

use attune_domain::serve::Sampling;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use toktrie::SimpleVob;

/// The number of most likely tokens that are sorted first; four times as many, repeatedly, if their probability is
/// below `top_p`.
const FIRST_LOOK: usize = 64;

/// The sampler of one answer's tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    logit_bias: BTreeMap<u32, f64>,
    /// The count of each sampled token; only kept for penalties.
    sampled: BTreeMap<u32, u32>,
    random: Pcg64,
}

impl Sampler {
    /// Creates the sampler of answer number `choice` from a request's parameters.
    #[must_use]
    pub fn new(wishes: &Sampling, choice: u32) -> Self {
        Self {
            temperature: wishes.temperature,
            top_p: wishes.top_p,
            presence_penalty: wishes.presence_penalty,
            frequency_penalty: wishes.frequency_penalty,
            logit_bias: wishes.logit_bias.clone(),
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
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.sampled.entry(token).or_default() += 1;
        }
        Some(token)
    }

    /// Returns the logits with biases and penalties; minus infinity for tokens that are not allowed.
    ///
    /// Source: "Parameter details" of OpenAI's guide to text generation: each token's logit less its count times the
    /// frequency penalty, and less the presence penalty if the count is above 0.
    fn adjusted<'a>(&self, logits: &'a [f32], allowed: Option<&SimpleVob>) -> Cow<'a, [f32]> {
        if self.logit_bias.is_empty() && self.sampled.is_empty() && allowed.is_none() {
            return Cow::Borrowed(logits);
        }
        let mut adjusted = logits.to_vec();
        let mut add = |id: u32, value: f64| {
            if let Some(logit) = adjusted.get_mut(id as usize) {
                *logit = (f64::from(*logit) + value) as f32;
            }
        };
        self.logit_bias.iter().for_each(|(id, bias)| add(*id, *bias));
        for (id, count) in &self.sampled {
            add(*id, -self.presence_penalty - self.frequency_penalty * f64::from(*count));
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
            let log = |index: usize| f64::from(logits[index] - logits[best]) / self.temperature;
            let kept = if self.top_p >= 1.0 {
                gumbel_argmax(place, (0..logits.len()).map(|index| (index, log(index))))
            } else {
                let weights: Vec<f64> = (0..logits.len()).map(|index| log(index).exp()).collect();
                gumbel_argmax(place, nucleus(&weights, self.top_p).into_iter().map(|index| (index, log(index))))
            };
            kept.unwrap_or(best)
        };
        u32::try_from(picked).unwrap_or(u32::MAX)
    }
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

/// Returns the nucleus: the smallest set of most likely tokens whose probability is `top_p` or more, in descending
/// order. It always holds the most likely token. Ties are broken by the lower index. `weights` are unnormalized
/// probabilities.
///
/// Source: Holtzman et al., arXiv:1904.09751, §3.1.
fn nucleus(weights: &[f64], top_p: f64) -> Vec<usize> {
    let wanted = weights.iter().sum::<f64>() * top_p;
    let order = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let mut indices: Vec<usize> = (0..weights.len()).collect();
    let mut look = FIRST_LOOK;
    loop {
        // The whole vocabulary is sorted only if the nucleus is that large.
        if look < indices.len() {
            indices.select_nth_unstable_by(look - 1, order);
        }
        let top = look.min(indices.len());
        indices[..top].sort_unstable_by(order);
        let mut have = 0.0;
        let enough = indices[..top].iter().position(|&index| {
            have += weights[index];
            have >= wanted
        });
        if let Some(last) = enough {
            indices.truncate(last + 1);
            return indices;
        }
        if top == indices.len() {
            return indices;
        }
        look *= 4;
    }
}

/// Returns the token with the largest sum of log-probability and Gumbel noise. The logarithms may lack a common
/// constant.
fn gumbel_argmax(place: u64, tokens: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    // The noise is never larger: a skipped token could not have won.
    const LARGEST: f64 = 38.0;
    let mut best: Option<(usize, f64)> = None;
    for (index, log) in tokens {
        let to_beat = best.map_or(f64::NEG_INFINITY, |(_, sum)| sum);
        if log + LARGEST <= to_beat {
            continue;
        }
        let sum = log + gumbel_noise(place, index as u64);
        if sum > to_beat {
            best = Some((index, sum));
        }
    }
    best.map(|(index, _)| index)
}

/// Returns noise from the standard Gumbel distribution, deterministic in place and token.
fn gumbel_noise(place: u64, token: u64) -> f64 {
    // The finalizer of SplitMix64 (Steele et al., OOPSLA 2014) over a Weyl sequence that starts at `place`.
    let mut bits = place.wrapping_add((token + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    let uniform = ((bits >> 11) as f64 + 0.5) * 2f64.powi(-53); // in the open interval (0, 1)
    -(-uniform.ln()).ln()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_p, seed, ..Sampling::default() }, 0)
    }

    #[test]
    fn at_temperature_0_the_first_of_the_largest_is_taken() {
        for (logits, want) in
            [(vec![1.0, 3.0, 3.0, 2.0], Some(1)), (vec![-5.0], Some(0)), (vec![], None), (vec![f32::MIN, 0.0], Some(1))]
        {
            assert_eq!(sampler(0.0, 1.0, 1).sample(&logits, None), want);
        }
    }

    #[test]
    fn logits_that_are_not_finite_give_no_token() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(sampler(0.0, 1.0, 1).sample(&[1.0, bad], None), None);
            assert_eq!(sampler(1.0, 0.9, 1).sample(&[1.0, bad], None), None);
        }
    }

    #[test]
    fn a_nucleus_of_nothing_is_still_the_most_likely_token() {
        assert_eq!(sampler(1.0, 0.0, 3).sample(&[0.1, 0.2, 0.15], None), Some(1));
    }

    #[test]
    fn a_tiny_temperature_is_greedy_and_not_a_division_by_zero() {
        assert_eq!(sampler(1e-300, 1.0, 3).sample(&[0.1, 0.2, 0.15], None), Some(1));
    }

    #[test]
    fn the_samples_have_the_model_s_frequencies() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let mut sampler = sampler(1.0, 1.0, 11);
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, None).unwrap() as usize] += 1;
        }
        // Three standard deviations of a share of 0.5 over 20,000 samples are 0.011.
        for (count, want) in counts.iter().zip([0.5, 0.3, 0.2]) {
            assert!((f64::from(*count) / 20_000.0 - want).abs() < 0.011, "{counts:?}");
        }
    }

    #[test]
    fn a_wide_nucleus_is_found_beyond_the_first_look() {
        let weights = vec![1.0; 1000];
        assert_eq!(nucleus(&weights, 0.5), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_bits_of_the_logits_do_not_change_the_samples() {
        let logits: Vec<f32> =
            (0..1000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as f32 / 16_384.0).collect();
        let shaken: Vec<f32> = logits.iter().map(|logit| logit * (1.0 + 3e-7)).collect();
        for top_p in [0.9, 1.0] {
            let (mut one, mut other) = (sampler(0.8, top_p, 5), sampler(0.8, top_p, 5));
            assert!((0..2000).all(|_| one.sample(&logits, None) == other.sample(&shaken, None)));
        }
    }

    #[test]
    fn a_bias_decides_and_penalties_wear_off_what_was_sampled() {
        let wishes = Sampling { temperature: 0.0, logit_bias: [(2, 100.0)].into(), ..Sampling::default() };
        assert_eq!(Sampler::new(&wishes, 0).sample(&[5.0, 3.0, 1.0], None), Some(2));
        let wishes = Sampling { temperature: 0.0, frequency_penalty: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(&wishes, 0);
        let tokens: Vec<_> = (0..4).map(|_| sampler.sample(&[5.0, 3.5, 1.0], None).unwrap()).collect();
        assert_eq!(tokens, [0, 0, 1, 0]);
        let wishes = Sampling { temperature: 0.0, presence_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(&wishes, 0);
        let tokens: Vec<_> = (0..3).map(|_| sampler.sample(&[5.0, 3.5, 1.0], None).unwrap()).collect();
        assert_eq!(tokens, [0, 1, 0]);
    }

    #[test]
    fn what_is_not_allowed_is_never_sampled() {
        let mut allowed = SimpleVob::alloc(4);
        allowed.set(1, true);
        allowed.set(3, true);
        let logits = [9.0, 1.0, 9.0, 0.5];
        for top_p in [0.0, 0.5, 1.0] {
            let mut sampler = sampler(2.0, top_p, 7);
            let tokens: std::collections::BTreeSet<_> =
                (0..200).map(|_| sampler.sample(&logits, Some(&allowed)).unwrap()).collect();
            assert!(tokens.iter().all(|id| [1, 3].contains(id)), "{tokens:?}");
        }
        assert_eq!(sampler(1.0, 1.0, 1).sample(&logits, Some(&SimpleVob::alloc(4))), None);
    }

    #[test]
    fn further_answers_have_seeds_of_their_own_and_the_first_the_request_s() {
        let wishes = Sampling { seed: 5, ..Sampling::default() };
        let samples = |choice| {
            let mut sampler = Sampler::new(&wishes, choice);
            (0..20).map(|_| sampler.sample(&[0.0; 50], None).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(samples(1), samples(1));
        assert!(samples(0) != samples(1) && samples(1) != samples(2));
    }

    proptest! {
        #[test]
        fn top_p_keeps_the_smallest_set_that_has_it(logits in vec(-8f32..8.0, 1..300), top_p in 0.01..1.0f64) {
            let best = most_likely(&logits).unwrap();
            let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - logits[best]).exp()).collect();
            let total: f64 = weights.iter().sum();
            let set = nucleus(&weights, top_p);
            let mass = |set: &[usize]| set.iter().map(|&i| weights[i]).sum::<f64>() / total;
            prop_assert!(mass(&set) >= top_p - 1e-9);
            prop_assert!(mass(&set[..set.len() - 1]) < top_p + 1e-9);
            let least = weights[*set.last().unwrap()];
            for (index, weight) in weights.iter().enumerate() {
                prop_assert!(set.contains(&index) || *weight <= least);
            }
        }

        #[test]
        fn the_same_seed_samples_the_same(logits in vec(-4f32..4.0, 1..100), seed: u64, top_p in 0.1..1.0f64) {
            let sample = || {
                let mut s = sampler(0.8, top_p, seed);
                (0..20).map(|_| s.sample(&logits, None)).collect::<Vec<_>>()
            };
            prop_assert_eq!(sample(), sample());
        }
    }
}
