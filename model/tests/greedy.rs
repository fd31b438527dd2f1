//! Greedy decoding of a real model, compared with transformers token by token (`testdata/make_greedy.py`): all 20
//! prompts in one batch, and one of them alone.
//!
//! The two largest logits in the fixture differ by at least 4e-3; another f32 summation order changes them by 1e-4.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

use std::path::PathBuf;

use attune_domain::{placement::Placement, spec::Quantization};
use attune_model::{
    decoder::{Decoder, Step},
    nn::kv_cache::KvCache,
};

#[derive(serde::Deserialize)]
struct Fixture {
    rows: Vec<Row>,
}

#[derive(serde::Deserialize)]
struct Row {
    prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
}

#[expect(clippy::disallowed_methods, reason = "a test reads its configuration from the environment")]
fn folder() -> PathBuf {
    let cache = std::env::var("ATTUNE_CACHE")
        .map_or_else(|_| PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/attune"), PathBuf::from);
    cache.join("models/SmolLM2-135M-Instruct")
}

/// Returns the most likely token of each row of `[steps, v]`.
fn best(logits: &tch::Tensor) -> Vec<u32> {
    let best = Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap();
    best.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
}

/// Prefills all prompts, and decodes until each row has as many tokens as its fixture.
fn decode(decoder: &Decoder, rows: &[&Row]) -> Vec<Vec<u32>> {
    let mut caches: Vec<KvCache> = rows.iter().map(|_| decoder.new_cache(96).unwrap()).collect();
    let mut out = vec![Vec::new(); rows.len()];
    let mut next: Vec<(usize, Vec<u32>)> = rows.iter().enumerate().map(|(at, row)| (at, row.ids.clone())).collect();
    while !next.is_empty() {
        let mut steps: Vec<Step<'_>> = Vec::new();
        let mut free = caches.iter_mut().enumerate();
        for (at, ids) in &next {
            let (_, cache) = free.by_ref().find(|(place, _)| place == at).unwrap();
            steps.push(Step { ids, cache, adapter: None, every: false });
        }
        let logits = decoder.forward_cached(&mut steps).unwrap();
        let places: Vec<usize> = next.iter().map(|(at, _)| *at).collect();
        next.clear();
        for (at, id) in places.into_iter().zip(best(&logits)) {
            out[at].push(id);
            if out[at].len() < rows[at].greedy.len() {
                next.push((at, vec![id]));
            }
        }
    }
    out
}

#[test]
fn greedy_answers_are_those_of_transformers_token_for_token() {
    let folder = folder();
    assert!(folder.join("model.safetensors").exists(), "{} is missing: scripts/setup makes it", folder.display());
    let text = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/greedy.json")).unwrap();
    let fixture: Fixture = serde_json::from_slice(&text).unwrap();
    assert_eq!(fixture.rows.len(), 20);
    let decoder = Decoder::load(&folder, Quantization::None, Placement::default()).unwrap();
    let rows: Vec<&Row> = fixture.rows.iter().collect();
    for (row, got) in rows.iter().zip(decode(&decoder, &rows)) {
        assert_eq!(got, row.greedy, "{}", row.prompt);
    }
    assert_eq!(decode(&decoder, &rows[6..7]), [rows[6].greedy.clone()], "alone");
}
