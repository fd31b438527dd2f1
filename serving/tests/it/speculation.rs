//! Speculative decoding: drafts change the number of passes, and no answer.

use attune_domain::bytes::Bytes;
use attune_serving::decoding::engine::Limits;

use crate::world::{Ask, World, answered};

/// Prompts whose end repeats a part of them, with different lengths and periods.
fn prompts() -> impl Iterator<Item = Vec<u32>> {
    (1..=24u32).map(|number| {
        let part: Vec<u32> = (0..3 + number * 2).map(|at| (at * 31 + number * 57 + at * at) % 256).collect();
        part.iter().cycle().take(part.len() * 2 + 5).copied().collect()
    })
}

/// With and without drafts, alone and in a batch, over the base and an adapter: the same tokens. The base is in `f32`,
/// where the order of sums may differ in the last bits; greedy tokens and seeded samples do not depend on these.
#[tokio::test]
async fn drafts_are_accepted_and_change_no_answer() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let adapter = world.adapter(1, None).await;
    let asks: Vec<Ask> = prompts()
        .enumerate()
        .map(|(number, prompt)| Ask {
            prompt,
            adapter: number.is_multiple_of(3).then(|| adapter.clone()),
            temperature: if number.is_multiple_of(4) { 0.7 } else { 0.0 },
            ..Ask::greedy(number as u64, 1, 80)
        })
        .collect();
    let plain = world.engine_with(4096, |limits| Limits { max_batch: 1, speculation: false, ..limits });
    let mut want = Vec::new();
    for ask in &asks {
        let answer = answered(ask.submit(&plain, &adapters).await).await;
        assert_eq!(answer.from_drafts, 0);
        want.push(answer.tokens);
    }
    for max_batch in [1, 3] {
        let engine = world.engine_with(65_536, |limits| Limits { max_batch, ..limits });
        let mut running = Vec::new();
        for ask in &asks {
            running.push(ask.submit(&engine, &adapters).await);
        }
        let mut from_drafts = 0;
        for ((drawn, want), ask) in running.into_iter().zip(&want).zip(&asks) {
            let answer = answered(drawn).await;
            assert_eq!(&answer.tokens, want, "{:?}", ask.prompt);
            from_drafts += answer.from_drafts;
        }
        assert!(from_drafts > 0, "no draft was accepted in batches of {max_batch}");
    }
}

#[tokio::test]
async fn accepted_tokens_have_the_log_probabilities_of_single_ones() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let mut from_drafts = 0;
    for prompt in prompts().take(6) {
        let ask = Ask { prompt, scores: Some(4), ..Ask::greedy(1, 1, 80) };
        let mut answers = Vec::new();
        for speculation in [false, true] {
            let engine = world.engine_with(4096, |limits| Limits { speculation, ..limits });
            answers.push(answered(ask.submit(&engine, &adapters).await).await);
        }
        let [plain, drafted] = &answers[..] else { panic!("two answers") };
        assert_eq!(plain.tokens, drafted.tokens);
        assert_eq!((plain.scores.len(), plain.from_drafts), (drafted.scores.len(), 0));
        from_drafts += drafted.from_drafts;
        for (plain, drafted) in plain.scores.iter().zip(&drafted.scores) {
            assert_eq!(plain.id, drafted.id);
            let (plain, drafted) = (plain.logprob.unwrap_or(0.0), drafted.logprob.unwrap_or(0.0));
            assert!((plain - drafted).abs() < 1e-4, "{plain} {drafted}");
        }
    }
    assert!(from_drafts > 0);
}
