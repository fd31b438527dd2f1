//! Speculative decoding by a draft model: the same answers in fewer passes of the base.

use attune_domain::{bytes::Bytes, placement::Placement, serve::KvCacheDtype, spec::Quantization};
use attune_model::decoder::Decoder;
use attune_process::metrics;
use attune_serving::decoding::engine::Limits;

use crate::world::{Ask, World, answered, tokens};

/// Returns the value of a counter of this process, of the drafts of models.
fn counter(name: &str) -> f64 {
    let prefix = format!("{name}{{source=\"model\"}} ");
    let value = metrics::render().lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
    value.unwrap_or(0.0)
}

/// Returns a draft that mostly agrees with the base, since it is the base in 8 bits, and one that seldom does.
fn drafts(world: &World) -> [Decoder; 2] {
    let other = world.path("other");
    attune_tests::tiny::write(&other, 8).unwrap();
    let load = |folder: &std::path::Path| Decoder::load(folder, Quantization::Int8, Placement::default()).unwrap();
    [load(&world.base()), load(&other)]
}

/// With and without a draft model, over the base and an adapter, with prompts of several chunks and short ones: the
/// same greedy tokens. The draft has keys and values of its own, in either type.
#[tokio::test]
async fn a_draft_model_changes_no_greedy_answer() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let adapter = world.adapter(1, None).await;
    let asks: Vec<Ask> = [3, 40, 130, 300, 17, 128, 9]
        .into_iter()
        .enumerate()
        .map(|(number, prompt)| Ask {
            adapter: number.is_multiple_of(3).then(|| adapter.clone()),
            ..Ask::greedy(number as u64, prompt, 80)
        })
        .collect();
    let plain = world.engine_with(4096, |limits| Limits { max_batch: 1, speculation: false, ..limits });
    let mut want = Vec::new();
    for ask in &asks {
        want.push(tokens(ask.submit(&plain, &adapters).await).await);
    }
    for draft in drafts(&world) {
        let engine = world.engine_of(Some(draft), 65_536, KvCacheDtype::Auto);
        // One after the other, which makes the most drafts, and then all at once.
        for (ask, want) in asks.iter().zip(&want) {
            assert_eq!(&tokens(ask.submit(&engine, &adapters).await).await, want, "{:?}", ask.prompt);
        }
        let mut running = Vec::new();
        for ask in &asks {
            running.push(ask.submit(&engine, &adapters).await);
        }
        for (drawn, want) in running.into_iter().zip(&want) {
            assert_eq!(&tokens(drawn).await, want);
        }
    }
    let (drafted, accepted) = (counter("attune_draft_tokens_total"), counter("attune_accepted_draft_tokens_total"));
    assert!(accepted > 0.0 && drafted > accepted, "{accepted} of {drafted}");
}

/// Neither the base's pool nor the draft's can hold all sequences: some are preempted, and some have no drafts.
#[tokio::test]
async fn drafts_without_memory_are_left_out() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let asks: Vec<Ask> = (0..4).map(|seed| Ask::greedy(seed, 130, 300)).collect();
    let plain = world.engine_with(4096, |limits| Limits { max_batch: 1, speculation: false, ..limits });
    let [draft, _] = drafts(&world);
    let engine = world.engine_of(Some(draft), 800, KvCacheDtype::Auto);
    let mut running = Vec::new();
    for ask in &asks {
        running.push(ask.submit(&engine, &adapters).await);
    }
    for (ask, drawn) in asks.iter().zip(running) {
        assert_eq!(tokens(drawn).await, tokens(ask.submit(&plain, &adapters).await).await);
    }
}

/// Sampled answers have all of their tokens, whatever is accepted. Tests of the sequence count the distribution.
#[tokio::test]
async fn sampled_answers_with_a_draft_model_are_complete() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    for draft in drafts(&world) {
        let engine = world.engine_of(Some(draft), 8192, KvCacheDtype::Auto);
        for seed in 0..6 {
            let ask = Ask { temperature: 0.9, scores: Some(2), ..Ask::greedy(seed, 20, 60) };
            let answer = answered(ask.submit(&engine, &adapters).await).await;
            assert_eq!((answer.tokens.len(), answer.scores.len()), (60, 80));
        }
    }
}
