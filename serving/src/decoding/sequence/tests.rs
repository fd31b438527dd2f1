//! Tests of a sequence without memory, as it waits or after a preemption.

use attune_domain::serve::Sampling;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

fn sequence(prompt: u32) -> (Sequence, UnboundedReceiver<EngineEvent>) {
    let (out, events) = unbounded_channel();
    let prompt: Arc<[u32]> = (0..prompt).collect();
    let work = GenerateJob {
        project: "p".into(),
        priority: Priority::Live,
        sampler: Sampler::new(&Sampling::default(), 0, &prompt),
        prompt,
        lease: None,
        max_tokens: None,
        stop_ids: Vec::new(),
        constraint: None,
        scores: None,
        prompt_scores: false,
        out,
    };
    (Sequence::new(work, 1000), events)
}

#[test]
fn tokens_are_cached_only_if_they_were_copied_each_time() {
    let (mut sequence, mut events) = sequence(300);
    sequence.count_cached(128);
    sequence.count_cached(256); // preempted, and copied from another request
    sequence.sample(&[0.0, 1.0], None);
    sequence.count_cached(0); // preempted after the start, which was reported
    assert!(matches!(events.try_recv(), Ok(EngineEvent::Started { cached: 128, .. })));
    assert_eq!(sequence.cached, Some(128));
}

#[test]
fn work_that_is_done_again_has_no_price() {
    let (mut long, _events) = sequence(300);
    assert_eq!(long.price(), CHUNK as u64 * INPUT_PRICE);
    assert_eq!(long.price(), 0); // the memory was lost
    let (mut short, _events) = sequence(100);
    assert_eq!(short.price(), 100 * INPUT_PRICE + OUTPUT_PRICE);
}

/// A model of four tokens whose logits depend on the last token only.
const CHAIN: [[f64; 4]; 4] =
    [[0.4, 0.3, 0.2, 0.1], [0.05, 0.15, 0.6, 0.2], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]];

fn chain_logits(token: u32) -> Vec<f32> {
    CHAIN[token as usize].iter().map(|p| p.ln() as f32).collect()
}

/// Samples `count` tokens after token 1, the first with a draft of this token and `draft`, if there is one.
fn of_chain(seed: u64, wishes: &Sampling, draft: &[u32], count: usize) -> Vec<u32> {
    let (mut sequence, _events) = sequence(2);
    sequence.work.sampler = Sampler::new(&Sampling { seed, ..wishes.clone() }, 0, &[0, 1]);
    if !draft.is_empty() {
        sequence.verifying = [&[1][..], draft].concat();
        let rows: Vec<f32> = sequence.verifying.iter().flat_map(|token| chain_logits(*token)).collect();
        assert!(!sequence.sample_after(&rows, 4));
    }
    while sequence.sampled.len() < count {
        let last = sequence.sampled.last().copied().unwrap_or(1);
        assert!(!sequence.sample_after(&chain_logits(last), 4));
    }
    sequence.sampled.truncate(count);
    sequence.sampled
}

/// The draft only decides how many tokens a step gives, also with filters and penalties, whose state changes with each
/// token.
#[test]
fn a_draft_changes_no_token() {
    let free = Sampling::default();
    let greedy = Sampling { temperature: 0.0, ..free.clone() };
    let changing = Sampling { temperature: 1.3, top_p: 0.8, frequency_penalty: 1.5, ..free.clone() };
    for wishes in [free, greedy, changing] {
        for seed in 0..200 {
            let want = of_chain(seed, &wishes, &[], 6);
            for draft in [&[2, 2][..], &[0, 0, 0, 0, 0][..], &[2, 0, 1, 2, 3][..], &want[..5]] {
                assert_eq!(of_chain(seed, &wishes, draft, 6), want, "{seed} {draft:?}");
            }
        }
    }
}

/// Returns Pearson's statistic of the counts of all 64 sequences of three tokens after token 1.
fn chi_square(counts: &[u32; 64], runs: u32) -> f64 {
    let apart = |(place, count): (usize, &u32)| {
        let [first, second, third] = [place / 16, place / 4 % 4, place % 4];
        let want = f64::from(runs) * CHAIN[1][first] * CHAIN[first][second] * CHAIN[second][third];
        (f64::from(*count) - want).powi(2) / want
    };
    counts.iter().enumerate().map(apart).sum()
}

/// Pearson's chi-square test over all 64 sequences of three tokens: with 63 degrees of freedom, the statistic is above
/// 119 in one of 30,000 runs if the distribution is the chain's.
#[test]
fn the_distribution_with_drafts_is_that_of_the_model() {
    const RUNS: u32 = 20_000;
    for draft in [&[2, 2][..], &[0, 3][..], &[3, 1][..]] {
        let mut counts = [0u32; 64];
        for seed in 0..RUNS {
            let sampled = of_chain(seed.into(), &Sampling::default(), draft, 3);
            counts[sampled.iter().fold(0, |place, token| 4 * place + *token as usize)] += 1;
        }
        let statistic = chi_square(&counts, RUNS);
        assert!(statistic < 119.0, "{draft:?}: {statistic}");
    }
}

#[test]
fn accepted_tokens_are_priced_and_the_others_are_not() {
    let (mut sequence, mut events) = sequence(2);
    sequence.work.sampler = Sampler::new(&Sampling { temperature: 0.0, ..Sampling::default() }, 0, &[0, 1]);
    let rows: Vec<f32> = [1, 2, 0, 0].into_iter().flat_map(chain_logits).collect();
    sequence.verifying = vec![1, 2, 0, 3]; // the most likely tokens after 1, 2 and 0 are 2, 0 and 0
    assert!(!sequence.sample_after(&rows, 4));
    assert_eq!(sequence.sampled, [2, 0, 0]);
    assert_eq!((sequence.accepted_price(), sequence.accepted_price()), (2 * OUTPUT_PRICE, 0));
    assert_eq!(sequence.from_drafts, 2);
    assert!(matches!(events.try_recv(), Ok(EngineEvent::Started { .. })));
    let sent = std::iter::from_fn(|| events.try_recv().ok());
    assert!(sent.map(|event| matches!(event, EngineEvent::Token { .. })).eq([true; 3]));
}

/// A draft that goes beyond the end of the answer, or beyond a stop token, ends with it.
#[test]
fn an_answer_ends_within_a_draft() {
    for (max_tokens, stop_ids, want) in [(Some(2), vec![], vec![2, 0]), (None, vec![0], vec![2])] {
        let (mut sequence, mut events) = sequence(2);
        sequence.work.sampler = Sampler::new(&Sampling { temperature: 0.0, ..Sampling::default() }, 0, &[0, 1]);
        sequence.work.stop_ids = stop_ids;
        sequence.end = max_tokens.map_or(100, |most: usize| 2 + most);
        sequence.verifying = vec![1, 2, 0, 0];
        let rows: Vec<f32> = [1, 2, 0, 0].into_iter().flat_map(chain_logits).collect();
        assert!(sequence.sample_after(&rows, 4));
        assert_eq!(sequence.sampled, want);
        let ends = std::iter::from_fn(|| events.try_recv().ok()).filter(|e| matches!(e, EngineEvent::End { .. }));
        assert_eq!(ends.count(), 1);
    }
}

/// A draft model of the same tokens: nearly the chain after token 1, and far from it after the others.
const DRAFTER: [[f64; 4]; 4] =
    [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.5, 0.2], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.4, 0.4]];

/// Samples `count` tokens after token 1, with drafts of at most `length` tokens by the draft model. Returns the number
/// of accepted tokens too.
fn with_draft_model(seed: u64, wishes: &Sampling, length: usize, count: usize) -> (Vec<u32>, u64) {
    let (mut sequence, _events) = sequence(2);
    sequence.work.sampler = Sampler::new(&Sampling { seed, ..wishes.clone() }, 0, &[0, 1]);
    while sequence.sampled.len() < count {
        let mut proposal = sequence.propose(length);
        let mut next = sequence.known().last().copied();
        while let Some(token) = next {
            let logits = DRAFTER[token as usize].map(|p| p.ln() as f32);
            next = proposal.sample(&logits);
        }
        sequence.verify(proposal);
        assert_eq!(sequence.verifying.len(), 1 + length);
        let rows: Vec<f32> = sequence.verifying.iter().flat_map(|token| chain_logits(*token)).collect();
        assert!(!sequence.sample_after(&rows, 4));
    }
    sequence.sampled.truncate(count);
    (sequence.sampled, sequence.from_drafts)
}

#[test]
fn a_draft_model_changes_no_greedy_token() {
    let penalized = Sampling { temperature: 0.0, frequency_penalty: 1.5, ..Sampling::default() };
    for wishes in [Sampling { temperature: 0.0, ..Sampling::default() }, penalized] {
        let want = of_chain(0, &wishes, &[], 8);
        for length in [1, 2, 5] {
            let (tokens, from_drafts) = with_draft_model(0, &wishes, length, 8);
            assert_eq!(tokens, want);
            assert!(from_drafts > 0, "no draft was accepted");
        }
    }
}

/// The test of [`the_distribution_with_drafts_is_that_of_the_model`], with tokens that a draft model samples.
#[test]
fn the_distribution_with_a_draft_model_is_that_of_the_model() {
    const RUNS: u32 = 20_000;
    for length in [1, 2, 5] {
        let mut counts = [0u32; 64];
        let mut accepted = 0;
        for seed in 0..RUNS {
            let (sampled, from_drafts) = with_draft_model(seed.into(), &Sampling::default(), length, 3);
            counts[sampled.iter().fold(0, |place, token| 4 * place + *token as usize)] += 1;
            accepted += from_drafts;
        }
        let statistic = chi_square(&counts, RUNS);
        assert!(statistic < 119.0, "{length}: {statistic}");
        assert!(accepted > u64::from(RUNS) / 2, "{length}: {accepted}");
    }
}
