//! The engine: each request in a batch gets the same answer as alone.

use attune_domain::{bytes::Bytes, placement::Placement, serve::Priority, spec::Quantization};
use attune_model::decoder::Decoder;
use attune_serving::{
    decoding::{engine::Limits, scores::TokenScore, sequence::EngineEvent},
    error::Failure,
};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::world::{Ask, World, scored, tokens, tokens_after_start};

/// Returns requests with short and long prompts, greedy and with temperature, over the base and two adapters.
async fn requests(world: &World) -> Vec<Ask> {
    let adapters = [None, Some(world.adapter(1, None).await), Some(world.adapter(2, None).await)];
    let mut all = Vec::new();
    for (number, prompt) in [3, 40, 130, 5, 300, 64, 17, 128, 9].into_iter().enumerate() {
        let greedy = Ask::greedy(number as u64, prompt, 24);
        let temperature = if number % 2 == 0 { 0.0 } else { 0.9 };
        all.push(Ask { adapter: adapters[number % 3].clone(), temperature, ..greedy });
    }
    all
}

async fn one_by_one(world: &World, asks: &[Ask]) -> Vec<Vec<u32>> {
    let adapters = world.adapters(Bytes::mib(64));
    let mut answers = Vec::new();
    for ask in asks {
        let engine = world.engine(1, 4096);
        answers.push(tokens(ask.submit(&engine, &adapters).await).await);
    }
    answers
}

async fn together(world: &World, asks: &[Ask], max_batch: usize, kv_tokens: u64) -> Vec<Vec<u32>> {
    let (engine, adapters) = (world.engine(max_batch, kv_tokens), world.adapters(Bytes::mib(64)));
    let mut running = Vec::new();
    for ask in asks {
        running.push(ask.submit(&engine, &adapters).await);
    }
    let mut answers = Vec::new();
    for drawn in running {
        answers.push(tokens(drawn).await);
    }
    answers
}

#[tokio::test]
async fn a_batch_answers_as_each_request_alone_would() {
    let world = World::new().await;
    let asks = requests(&world).await;
    let alone = one_by_one(&world, &asks).await;
    assert!(alone.iter().all(|answer| answer.len() == 24));
    assert_eq!(together(&world, &asks, 16, 16384).await, alone);
    assert_eq!(together(&world, &asks, 3, 16384).await, alone);
}

#[tokio::test]
async fn adapters_answer_differently_from_the_base_and_from_each_other() {
    let world = World::new().await;
    let base = Ask::greedy(5, 30, 16);
    let one = Ask { adapter: Some(world.adapter(1, None).await), ..base.clone() };
    let two = Ask { adapter: Some(world.adapter(2, None).await), ..base.clone() };
    let answers = together(&world, &[base, one, two], 16, 16384).await;
    assert!(answers[0] != answers[1] && answers[1] != answers[2] && answers[0] != answers[2], "{answers:?}");
}

#[tokio::test]
async fn a_sequence_preempted_for_want_of_memory_answers_the_same() {
    let world = World::new().await;
    // Each needs 430 tokens, more than its first reservation; the memory holds not quite two of them.
    let asks: Vec<Ask> = (0..4).map(|n| Ask { temperature: 0.7, ..Ask::greedy(n, 130, 300) }).collect();
    let alone = one_by_one(&world, &asks).await;
    assert_eq!(together(&world, &asks, 4, 800).await, alone);
}

#[tokio::test]
async fn a_shared_beginning_is_taken_over_and_changes_nothing() {
    let world = World::new().await;
    let system: Vec<u32> = (0..270).map(|at| (at * 7 + 3) % 256).collect();
    let asks: Vec<Ask> = (0..5u32)
        .map(|n| {
            let mut prompt = system.clone();
            prompt.extend([n, n + 1, n + 2]);
            Ask { prompt, ..Ask::greedy(u64::from(n), 1, 12) }
        })
        .collect();
    let alone = one_by_one(&world, &asks).await;
    let (engine, adapters) = (world.engine(2, 8192), world.adapters(Bytes::mib(64)));
    for (ask, alone) in asks.iter().zip(&alone) {
        assert_eq!(&tokens(ask.submit(&engine, &adapters).await).await, alone);
    }
}

/// Returns the number of prompt tokens that were copied for a request, and waits for its end.
async fn cached_of(mut events: UnboundedReceiver<EngineEvent>) -> usize {
    let cached = match events.recv().await {
        Some(EngineEvent::Started { cached, .. }) => cached,
        other => panic!("{other:?}"),
    };
    tokens_after_start(events).await;
    cached
}

/// The time to the first token and the count of cached tokens would show a project what others prompt.
#[tokio::test]
async fn a_shared_beginning_is_not_taken_over_from_another_project() {
    let world = World::new().await;
    let (engine, adapters) = (world.engine(4, 8192), world.adapters(Bytes::mib(64)));
    let ask = |project: &str| Ask { project: project.into(), ..Ask::greedy(1, 300, 4) };
    let cached = async |project| cached_of(ask(project).submit(&engine, &adapters).await).await;
    assert_eq!(cached("a").await, 0);
    assert_eq!(cached("b").await, 0);
    assert_eq!(cached("a").await, 256); // whole chunks
    // While another project's answer runs.
    let mut running = Ask { max_tokens: Some(500), ..ask("c") }.submit(&engine, &adapters).await;
    assert!(matches!(running.recv().await, Some(EngineEvent::Started { cached: 0, .. })));
    assert_eq!(cached("d").await, 0);
    assert_eq!(cached("c").await, 256);
}

/// The memory holds both requests only because the blocks of the common prefix exist once.
#[tokio::test]
async fn requests_with_a_common_beginning_share_its_memory() {
    let world = World::new().await;
    let engine = world.engine_with(704, |limits| Limits { speculation: false, ..limits });
    let adapters = world.adapters(Bytes::mib(64));
    let ask = |last: u32| {
        let prompt = (0..270).map(|at| (at * 7 + 3) % 256).chain([last]).collect();
        Ask { prompt, ..Ask::greedy(1, 1, 200) }
    };
    let alone = tokens(ask(9).submit(&world.engine(1, 4096), &adapters).await).await;
    let mut first = ask(8).submit(&engine, &adapters).await;
    assert!(matches!(first.recv().await, Some(EngineEvent::Started { cached: 0, .. })));
    let mut second = ask(9).submit(&engine, &adapters).await;
    assert!(matches!(second.recv().await, Some(EngineEvent::Started { cached: 256, .. })));
    while let Ok(event) = first.try_recv() {
        assert!(!matches!(event, EngineEvent::End { .. }), "the second request waited for the first");
    }
    assert_eq!(tokens_after_start(second).await, alone);
}

/// A sequence that lost its copied prefix before it started counts only what was never computed for it.
#[tokio::test]
async fn cached_tokens_are_counted_truly_when_sequences_are_preempted() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let system: Vec<u32> = (0..270).map(|at| (at * 7 + 3) % 256).collect();
    let ask = |n: u32| Ask { prompt: [&system[..], &[n]].concat(), ..Ask::greedy(1, 1, 200) };
    let alone = cached_of(ask(9).submit(&world.engine(1, 4096), &adapters).await).await;
    assert_eq!(alone, 0);
    let engine = world.engine(4, 900); // not quite two of them
    let mut running = Vec::new();
    for n in 0..4 {
        running.push(ask(n).submit(&engine, &adapters).await);
    }
    for events in running {
        assert!([0, 128, 256].contains(&cached_of(events).await));
    }
}

/// A batch fills all slots; a live request gets one at once, and the batch's answers do not change.
#[tokio::test]
async fn a_live_request_takes_the_slot_of_a_batch() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let batch = |seed| Ask { priority: Priority::Batch, project: "b".into(), ..Ask::greedy(seed, 40, 300) };
    let alone = tokens(batch(1).submit(&world.engine(1, 4096), &adapters).await).await;
    let engine = world.engine(1, 8192);
    let mut running = vec![batch(1).submit(&engine, &adapters).await];
    assert!(matches!(running[0].recv().await, Some(EngineEvent::Started { .. })));
    running.push(batch(2).submit(&engine, &adapters).await);
    let live = Ask { project: "b".into(), ..Ask::greedy(7, 16, 8) };
    assert_eq!(tokens(live.submit(&engine, &adapters).await).await.len(), 8);
    let mut sampled = Vec::new();
    while let Ok(event) = running[0].try_recv() {
        assert!(!matches!(event, EngineEvent::End { .. }), "the batch's answer ended first");
        if let EngineEvent::Token { id, .. } = event {
            sampled.push(id);
        }
    }
    let second = running.pop().unwrap();
    sampled.extend(tokens_after_start(running.pop().unwrap()).await);
    assert_eq!(sampled, alone);
    assert_eq!(tokens(second).await.len(), 300);
}

/// The reference computes all logits at once, without caches. The engine's differ by the order of sums, in the last
/// bits of numbers of order 10.
#[tokio::test]
async fn scores_are_those_of_the_whole_text_at_once_whatever_else_runs_and_is_preempted() {
    let world = World::new().await;
    let decoder = Decoder::load(&world.base(), Quantization::None, Placement::default()).unwrap();
    let asks: Vec<Ask> = (0..3).map(|n| Ask { scores: Some(5), temperature: 1.2, ..Ask::greedy(n, 200, 60) }).collect();
    let (engine, adapters) = (world.engine(3, 420), world.adapters(Bytes::mib(64)));
    let mut running = Vec::new();
    for ask in &asks {
        running.push(ask.submit(&engine, &adapters).await);
    }
    for (ask, drawn) in asks.iter().zip(running) {
        let (drawn, told) = scored(drawn).await;
        let all: Vec<u32> = ask.prompt.iter().chain(&drawn).copied().collect();
        assert_eq!(told.iter().map(|score| score.id).collect::<Vec<_>>(), all);
        let logits = decoder.logits(&all, &[all.len()], None).unwrap(); // [t, v]
        for (at, score) in told.iter().enumerate() {
            let Some(before) = at.checked_sub(1) else {
                assert_eq!(score, &TokenScore::of_first(all[0]));
                continue;
            };
            let row = Vec::<f32>::try_from(logits.get(before as i64)).unwrap();
            let want = TokenScore::new(&row, all[at], 5);
            let close = |a: f64, b: f64| (a - b).abs() < 1e-4;
            assert!(close(score.logprob.unwrap(), want.logprob.unwrap()), "{at}: {score:?} {want:?}");
            assert!(score.top.iter().zip(&want.top).all(|(a, b)| close(a.1, b.1)), "{at}: {score:?} {want:?}");
            assert_eq!(score.top.len(), 5);
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_frees_its_place() {
    let world = World::new().await;
    let (engine, adapters) = (world.engine(1, 4096), world.adapters(Bytes::mib(64)));
    let endless = Ask { max_tokens: None, ..Ask::greedy(1, 8, 0) };
    let mut drawn = endless.submit(&engine, &adapters).await;
    assert!(matches!(drawn.recv().await, Some(EngineEvent::Started { .. })));
    let abandoned_in_the_queue = endless.submit(&engine, &adapters).await;
    let next = Ask::greedy(2, 8, 4).submit(&engine, &adapters).await;
    drop((drawn, abandoned_in_the_queue));
    assert_eq!(tokens(next).await.len(), 4);
}

#[tokio::test]
async fn a_prompt_that_never_fits_is_refused_with_its_length_and_the_limit() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    // The memory has whole blocks of 16 tokens.
    for (kv_tokens, limit) in [(100_000, 1024), (500, 496), (10, 0)] {
        let engine = world.engine(2, kv_tokens);
        let mut drawn = Ask::greedy(1, 1024, 8).submit(&engine, &adapters).await;
        match drawn.recv().await {
            Some(EngineEvent::Failed(Failure::ContextLength { prompt: 1024, limit: said })) => assert_eq!(said, limit),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_ends_where_the_context_ends() {
    let world = World::new().await;
    let (engine, adapters) = (world.engine(2, 208), world.adapters(Bytes::mib(64)));
    let ask = Ask { max_tokens: None, ..Ask::greedy(3, 150, 0) };
    assert_eq!(tokens(ask.submit(&engine, &adapters).await).await.len(), 58);
    assert_eq!(tokens(Ask::greedy(3, 150, 0).submit(&engine, &adapters).await).await.len(), 0);
}

#[tokio::test]
async fn a_request_that_the_model_refuses_fails_alone() {
    let world = World::new().await;
    let (engine, adapters) = (world.engine(4, 4096), world.adapters(Bytes::mib(64)));
    let good = Ask::greedy(1, 20, 12);
    let bad = Ask { prompt: vec![1, 2, 100_000], ..good.clone() };
    let (first, mut refused) = (good.submit(&engine, &adapters).await, bad.submit(&engine, &adapters).await);
    let second = Ask::greedy(2, 20, 12).submit(&engine, &adapters).await;
    assert!(matches!(refused.recv().await, Some(EngineEvent::Failed(Failure::Internal(_)))));
    assert_eq!((tokens(first).await.len(), tokens(second).await.len()), (12, 12));
}

/// A request behind 200 long answers of another project would wait for all of them; instead it gets a slot immediately.
#[tokio::test]
async fn attack_a07_a_flood_of_one_project_does_not_hold_up_another() {
    let world = World::new().await;
    let (engine, adapters) = (world.engine(8, 65_536), world.adapters(Bytes::mib(64)));
    let mut flood = Vec::new();
    for seed in 0..200 {
        flood.push(Ask { project: "flood".into(), ..Ask::greedy(seed, 16, 400) }.submit(&engine, &adapters).await);
    }
    assert!(matches!(flood[0].recv().await, Some(EngineEvent::Started { .. })));
    let other = Ask { project: "other".into(), ..Ask::greedy(7, 16, 8) };
    assert_eq!(tokens(other.submit(&engine, &adapters).await).await.len(), 8);
    // None of the flood's 200 answers has ended by then.
    let mut ended = 0;
    for drawn in &mut flood {
        while let Ok(event) = drawn.try_recv() {
            ended += usize::from(matches!(event, EngineEvent::End { .. }));
        }
    }
    assert_eq!(ended, 0);
}

/// With few slots, and with memory for few requests, a project with nothing running gets one; the preempted request's
/// answer does not change.
#[tokio::test]
async fn limit_of_places_leaves_some_to_every_project() {
    let world = World::new().await;
    for (places, kv_tokens) in [(2, 16_384), (4, 800)] {
        let adapters = world.adapters(Bytes::mib(64));
        let ask = |project: &str, seed| Ask { project: project.into(), ..Ask::greedy(seed, 130, 300) };
        let alone = tokens(ask("a", 1).submit(&world.engine(1, 4096), &adapters).await).await;
        let engine = world.engine(places, kv_tokens);
        let mut running = Vec::new();
        for (project, seed) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5)] {
            running.push(ask(project, seed).submit(&engine, &adapters).await);
        }
        let mut answers = Vec::new();
        for drawn in running {
            answers.push(tokens(drawn).await);
        }
        assert_eq!(answers[0], alone);
        assert!(answers.iter().all(|answer| answer.len() == 300));
    }
}

#[tokio::test]
async fn limit_of_the_wait_for_a_first_place() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let max_wait = std::time::Duration::from_millis(50);
    let slow = |limits| Limits { max_batch: 1, max_wait, speculation: false, ..limits };
    let engine = world.engine_with(4096, slow);
    let mut first = Ask { max_tokens: None, ..Ask::greedy(1, 8, 0) }.submit(&engine, &adapters).await;
    assert!(matches!(first.recv().await, Some(EngineEvent::Started { .. })));
    let mut late = Ask::greedy(2, 8, 4).submit(&engine, &adapters).await;
    match late.recv().await {
        Some(EngineEvent::Failed(failure)) => assert_eq!(failure.code(), "replica_busy"),
        other => panic!("{other:?}"),
    }
}
