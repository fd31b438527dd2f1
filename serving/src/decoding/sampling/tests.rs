//! Tests of the sampler.

use proptest::{collection::vec, prelude::*};
use serde_json::Value;

use super::*;

fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
    Sampler::new(&Sampling { temperature, top_p, seed, ..Sampling::default() }, 0, &[])
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
fn the_last_bits_of_the_logits_do_not_change_the_samples() {
    let logits: Vec<f32> = (0..1000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as f32 / 16_384.0).collect();
    let shaken: Vec<f32> = logits.iter().map(|logit| logit * (1.0 + 3e-7)).collect();
    for top_p in [0.9, 1.0] {
        let (mut one, mut other) = (sampler(0.8, top_p, 5), sampler(0.8, top_p, 5));
        assert!((0..2000).all(|_| one.sample(&logits, None) == other.sample(&shaken, None)));
    }
}

#[test]
fn a_bias_decides_and_penalties_wear_off_what_was_sampled() {
    let wishes = Sampling { temperature: 0.0, logit_bias: [(2, 100.0)].into(), ..Sampling::default() };
    assert_eq!(Sampler::new(&wishes, 0, &[]).sample(&[5.0, 3.0, 1.0], None), Some(2));
    let wishes = Sampling { temperature: 0.0, frequency_penalty: 1.0, ..Sampling::default() };
    let mut sampler = Sampler::new(&wishes, 0, &[]);
    let tokens: Vec<_> = (0..4).map(|_| sampler.sample(&[5.0, 3.5, 1.0], None).unwrap()).collect();
    assert_eq!(tokens, [0, 0, 1, 0]);
    let wishes = Sampling { temperature: 0.0, presence_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(&wishes, 0, &[]);
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
        let mut sampler = Sampler::new(&wishes, choice, &[]);
        (0..20).map(|_| sampler.sample(&[0.0; 50], None).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(samples(1), samples(1));
    assert!(samples(0) != samples(1) && samples(1) != samples(2));
}

#[test]
fn a_repetition_penalty_is_of_the_prompt_and_of_what_was_sampled() {
    let wishes = Sampling { temperature: 0.0, repetition_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(&wishes, 0, &[0, 0]);
    // 5.0 is halved once, however often the prompt has the token; a negative logit is doubled.
    let tokens: Vec<_> = (0..3).map(|_| sampler.sample(&[5.0, 4.0, 2.2, -1.0], None).unwrap()).collect();
    assert_eq!(tokens, [1, 0, 0]);
    assert_eq!(sampler.adjusted(&[5.0, 4.0, 2.2, -1.0], None)[..], [2.5, 2.0, 2.2, -1.0]);
    let sampler = Sampler::new(&wishes, 0, &[3, 999]);
    assert_eq!(sampler.adjusted(&[5.0, 4.0, 2.2, -1.0], None)[..], [5.0, 4.0, 2.2, -2.0]);
}

#[test]
fn only_what_the_filters_keep_is_sampled() {
    let logits = [1.0, 3.0, 2.9, 0.5, 2.8];
    for (wishes, want) in [
        (Sampling { top_k: Some(2), ..Sampling::default() }, vec![1, 2]),
        (Sampling { min_p: 0.8, ..Sampling::default() }, vec![1, 2, 4]),
        (Sampling { top_k: Some(1), temperature: 2.0, ..Sampling::default() }, vec![1]),
    ] {
        let mut sampler = Sampler::new(&wishes, 0, &[]);
        let tokens: BTreeSet<_> = (0..500).map(|_| sampler.sample(&logits, None).unwrap()).collect();
        assert_eq!(tokens.into_iter().collect::<Vec<_>>(), want);
    }
}

/// `testdata/make_sampling.py` writes the distributions.
#[test]
fn the_distributions_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sampling.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 96);
    for case in cases {
        let number = |name: &str| case[name].as_f64().unwrap();
        let bias = case["logit_bias"].as_object().unwrap();
        let wishes = Sampling {
            temperature: number("temperature"),
            top_k: case["top_k"].as_u64().map(|most| u32::try_from(most).unwrap()),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
            logit_bias: bias.iter().map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap())).collect(),
            ..Sampling::default()
        };
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone()).unwrap();
        let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let want: BTreeMap<usize, f64> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let sampler = Sampler::new(&wishes, 0, &prompt);
        let adjusted = sampler.adjusted(&logits, None);
        let best = largest(&adjusted).unwrap();
        let kept = sampler.kept(&adjusted, best).unwrap_or_else(|| (0..logits.len()).collect());
        let weight = |index: usize| sampler.relative_log(&adjusted, best, index).exp();
        let total: f64 = kept.iter().map(|index| weight(*index)).sum();
        let probabilities: BTreeMap<usize, f64> = kept.iter().map(|index| (*index, weight(*index) / total)).collect();
        assert_eq!(probabilities.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{case}");
        // Transformers computes in f32, and the file has six digits.
        assert!(want.iter().all(|(index, want)| (probabilities[index] - want).abs() < 2e-6), "{case}");
    }
}

proptest! {
    #[test]
    fn the_same_seed_samples_the_same(logits in vec(-4f32..4.0, 1..100), seed: u64, top_p in 0.1..1.0f64) {
        let sample = || {
            let mut s = sampler(0.8, top_p, seed);
            (0..20).map(|_| s.sample(&logits, None)).collect::<Vec<_>>()
        };
        prop_assert_eq!(sample(), sample());
    }
}

#[test]
fn a_skipped_token_could_not_have_won() {
    for place in 0..200 {
        // Logarithms from 0 to -30, in an order of their own for each place.
        let logs: Vec<f64> = (0..2000).map(|index| -30.0 * uniform(place + 1000, index)).collect();
        let sums = logs.iter().enumerate().map(|(index, log)| log + gumbel_noise(uniform(place, index as u64)));
        let best = sums.enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(index, _)| index);
        assert_eq!(gumbel_argmax(place, logs.into_iter().enumerate()), best);
    }
}
