//! Keys and values in 8 bits: more tokens in the same memory, and nearly the same scores.

use attune_domain::{bytes::Bytes, serve::KvCacheDtype};
use attune_serving::decoding::engine::Limits;

use crate::world::{Ask, World, scored, tokens};

/// A head of 16 numbers takes 20 bytes instead of 64.
#[tokio::test]
async fn the_same_memory_holds_three_times_the_tokens() {
    let world = World::new().await;
    for (kv_cache_dtype, tokens) in [(KvCacheDtype::Auto, 96), (KvCacheDtype::Int8, 320)] {
        let engine = world.engine_with(100, |limits| Limits { kv_cache_dtype, ..limits });
        assert_eq!(engine.context(), tokens);
    }
}

/// The prompt is longer than two chunks, so that its scores depend on keys and values of earlier steps.
#[tokio::test]
async fn scores_in_8_bits_are_near_those_in_f32() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let mut most: f64 = 0.0;
    for seed in 1..=3 {
        let ask = Ask { scores: Some(1), ..Ask::greedy(seed, 300, 1) };
        let mut answers = Vec::new();
        for dtype in [KvCacheDtype::Auto, KvCacheDtype::Int8] {
            let engine = world.engine_of(None, 1024, dtype);
            answers.push(scored(ask.submit(&engine, &adapters).await).await.1);
        }
        let [plain, small] = &answers[..] else { panic!("two answers") };
        for (plain, small) in plain.iter().zip(small).take(300) {
            let (plain, small) = (plain.logprob.unwrap_or(0.0), small.logprob.unwrap_or(0.0));
            most = most.max((plain - small).abs());
        }
    }
    println!("FIGURE logprob_difference_of_int8_keys_and_values {most:e}");
    assert!(most > 0.0 && most < 0.1, "{most}");
}

/// A preempted sequence is computed again from its tokens, in the same chunks.
#[tokio::test]
async fn sequences_in_8_bits_are_complete_when_memory_is_short() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let engine = world.engine_of(None, 800, KvCacheDtype::Int8);
    let mut running = Vec::new();
    for seed in 0..4 {
        running.push(Ask::greedy(seed, 130, 300).submit(&engine, &adapters).await);
    }
    for drawn in running {
        assert_eq!(tokens(drawn).await.len(), 300);
    }
}
