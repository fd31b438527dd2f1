//! Attention of few rows to the KV caches of their sequences, in `f32` on the CPU: the decoding step of many sequences
//! in one pass, without a call of libtorch for each.
//!
//! A task has one key head of one row with all query heads that share it, so that each key and value is read once. Its
//! result does not depend on the other rows or on the number of threads.
//!
//! Shapes: `t` rows of the batch, `h` query heads, `n` key heads, `g = h/n`, `d` head width, `k` keys.
//!
//! Source: Vaswani et al., arXiv:1706.03762, §3.2.1, with the softmax in one part, since its `k` scores are in the
//! cache of the processor.

use std::ops::Range;

use tch::Tensor;

use super::Attention;
use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, sum_of},
        number::Real,
    },
    nn::kv_cache::{KvCache, Rows},
};

/// The multiplications below which waking another thread takes longer than the work.
const WORTH_A_THREAD: usize = 1 << 16;

/// A sequence with few new rows.
pub(crate) struct ShortRows<'a> {
    /// The indices of the rows in the batch.
    pub(crate) rows: Range<usize>,
    pub(crate) cache: &'a mut KvCache,
}

/// One key head of one row.
struct Task<'a> {
    /// The query heads of the key head, `[g, d]`.
    queries: &'a [f32],
    /// The keys that the row attends to, and their values, by block of the cache: `[_, d]` each, `[k, d]` together.
    blocks: Vec<(Rows<'a>, Rows<'a>)>,
    /// The output, `[g, d]`.
    out: &'a mut [f32],
}

/// Appends the keys and values of some rows of the rotated `heads: [t, h+2n, d]` to block `layer` of their caches, and
/// writes these rows of the output `out: [t, h·d]`. The rows are in ascending order.
///
/// # Errors
/// [`ModelError::Input`]: a tensor or a cache is not `Float` on the CPU, or a cache has no memory for the row.
pub(crate) fn forward_rows(
    attention: &Attention,
    heads: &Tensor,
    (layer, sequences): (usize, Vec<ShortRows<'_>>),
    out: &mut Tensor,
) -> Result<(), ModelError> {
    let size = |number: i64| usize::try_from(number).unwrap_or(0);
    let (h, n, d) = (size(attention.heads), size(attention.key_heads), size(attention.head_dim));
    let window = attention.window.map_or(usize::MAX, size);
    let heads: &[f32] = numbers(heads)?;
    let mut outs = numbers_mut::<f32>(out)?.chunks_exact_mut(h * d).enumerate();
    let mut tasks = Vec::with_capacity(sequences.len() * n);
    let mut work = 0;
    for ShortRows { rows, cache } in sequences {
        let refusal = || ModelError::Input(format!("rows {rows:?} are not in the batch, or out of order"));
        let width = (h + 2 * n) * d;
        let numbers = heads.get(rows.start * width..rows.end * width).ok_or_else(refusal)?;
        let (queries, pairs): (Vec<&[f32]>, Vec<_>) = numbers
            .chunks_exact(width)
            .map(|row| row.split_at(h * d))
            .map(|(queries, pairs)| (queries, pairs.split_at(n * d)))
            .unzip();
        let layer = cache.write_rows(layer, &pairs)?;
        for ((row, queries), len) in rows.clone().zip(queries).zip(layer.len + 1..) {
            let (_, out) = outs.find(|(at, _)| *at == row).ok_or_else(refusal)?;
            let seen = len.saturating_sub(window)..len;
            work += 2 * seen.len() * h * d;
            let of_heads = queries.chunks_exact(h / n * d).zip(out.chunks_exact_mut(h / n * d));
            for (head, (queries, out)) in of_heads.enumerate() {
                tasks.push(Task { queries, blocks: layer.rows(head, &seen), out });
            }
        }
    }
    let share = if work < WORTH_A_THREAD { tasks.len().max(1) } else { 1 };
    run(
        tasks.chunks_mut(share),
        #[inline(always)]
        |tasks| {
            for task in tasks {
                task.forward(d);
            }
        },
    );
    Ok(())
}

impl Task<'_> {
    /// Writes `softmax(q·kᵀ/√d)·v` for each query head.
    #[inline(always)]
    fn forward(&mut self, d: usize) {
        let count = self.blocks.iter().map(|(keys, _)| keys.count(d)).sum::<usize>();
        let mut scores = vec![0f32; self.queries.len() / d * count]; // [g, k]
        self.score(d, &mut scores, count);
        for (scores, out) in scores.chunks_exact_mut(count).zip(self.out.chunks_exact_mut(d)) {
            let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, &score| largest.max(score));
            for score in &mut *scores {
                *score = (*score - largest).power();
            }
            let inverse = 1.0 / sum_of(count, |at| scores[at]);
            out.fill(0.0);
            let mut rest = &*scores;
            for (_, values) in &self.blocks {
                let (scores, others) = rest.split_at(values.count(d));
                rest = others;
                add_values(out, scores, *values, d);
            }
            for out in out {
                *out *= inverse;
            }
        }
    }

    /// Writes the scores `[g, k]` of `count` keys.
    #[inline(always)]
    fn score(&self, d: usize, scores: &mut [f32], count: usize) {
        let scale = 1.0 / (d as f32).sqrt();
        let queries = || self.queries.chunks_exact(d).enumerate();
        let mut first = 0;
        for (keys, _) in &self.blocks {
            match *keys {
                Rows::Dense(keys) => {
                    for (at, key) in (first..).zip(keys.chunks_exact(d)) {
                        for (head, query) in queries() {
                            let (query, key) = (&query[..d], &key[..d]); // so that the places need no checks
                            scores[head * count + at] = scale * sum_of(d, |place| query[place] * key[place]);
                        }
                    }
                }
                Rows::Int8 { codes, scales } => {
                    for ((at, key), step) in (first..).zip(codes.chunks_exact(d)).zip(scales) {
                        for (head, query) in queries() {
                            let (query, key) = (&query[..d], &key[..d]);
                            let sum = sum_of(d, |place| query[place] * f32::from(key[place]));
                            scores[head * count + at] = scale * (step * sum);
                        }
                    }
                }
            }
            first += keys.count(d);
        }
    }
}

/// Adds the values, each times its score.
#[inline(always)]
fn add_values(out: &mut [f32], scores: &[f32], values: Rows<'_>, d: usize) {
    match values {
        Rows::Dense(values) => {
            for (value, &score) in values.chunks_exact(d).zip(scores) {
                for (out, &value) in out.iter_mut().zip(value) {
                    *out += score * value;
                }
            }
        }
        Rows::Int8 { codes, scales } => {
            for ((value, step), score) in codes.chunks_exact(d).zip(scales).zip(scores) {
                let score = score * step;
                for (out, &value) in out.iter_mut().zip(value) {
                    *out += score * f32::from(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{architecture::Architecture, bytes::Bytes, serve::KvCacheDtype};
    use tch::{Device, Kind};

    use super::*;
    use crate::nn::{attention::Sequence, kv_cache::KvPool};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
        "max_position_embeddings": 4096, "tie_word_embeddings": true}"#;

    fn cache(tokens: usize) -> KvCache {
        cache_of(tokens, KvCacheDtype::Auto)
    }

    fn cache_of(tokens: usize, dtype: KvCacheDtype) -> KvCache {
        let architecture = Architecture::from_config_json(CONFIG.as_bytes()).unwrap();
        let mut cache = KvPool::new(&architecture, Bytes::mib(64), CPU, dtype).new_cache();
        assert!(cache.grow_to(tokens).unwrap());
        cache
    }

    /// Three sequences of different lengths, some longer than the window: the rows of libtorch's kernel, and as many
    /// keys and values in the caches.
    #[test]
    fn rows_are_those_of_the_kernel_for_one_sequence() {
        let dtypes = [KvCacheDtype::Auto, KvCacheDtype::Int8];
        for (window, dtype) in [None, Some(5)].into_iter().flat_map(|window| dtypes.map(|dtype| (window, dtype))) {
            tch::manual_seed(41);
            let attention = Attention { heads: 6, key_heads: 2, head_dim: 8, window };
            let heads = Tensor::randn([4, 10, 8], CPU);
            let mut out = Tensor::full([4, 48], 7.0, CPU);
            let mut caches = [0, 3, 700].map(|past| {
                let mut cache = cache_of(past + 1, dtype);
                if past > 0 {
                    let made = || Tensor::randn([past as i64, 2, 8], CPU);
                    drop(cache.write(1, &made(), &made()).unwrap());
                    cache.advance(past);
                }
                cache
            });
            let mut want = Vec::new();
            for (row, cache) in [0, 1, 3].into_iter().zip(&caches) {
                let part = |start, count| heads.narrow(0, row, 1).narrow(1, start, count);
                let mut copy = cache.share_prefix(cache.len());
                assert!(copy.grow_to(copy.len() + 1).unwrap());
                let (key, value) = copy.write(1, &part(6, 2), &part(8, 2)).unwrap();
                let mask = attention.mask(1, key.size()[0], CPU).unwrap();
                let query = part(0, 6);
                let sequence = Sequence { query: &query, key: &key, value: &value, mask: mask.as_ref() };
                want.push(attention.forward(&sequence).unwrap().0.view([48]));
            }
            let rows = [0, 1, 3].into_iter().zip(&mut caches);
            let rows = rows.map(|(row, cache)| ShortRows { rows: row..row + 1, cache }).collect();
            forward_rows(&attention, &heads, (1, rows), &mut out).unwrap();
            for (row, want) in [0, 1, 3].into_iter().zip(&want) {
                assert!(out.get(row).allclose(want, 1e-5, 1e-6, false), "row {row}, window {window:?}, {dtype:?}");
            }
            assert!(out.get(2).equal(&Tensor::full([48], 7.0, CPU)), "the row of another sequence");
        }
    }

    /// Each row of a step attends to the rows before it, with the bits that it has as a step of its own.
    #[test]
    fn several_rows_of_a_sequence_have_the_bits_of_single_rows() {
        let dtypes = [KvCacheDtype::Auto, KvCacheDtype::Int8];
        for (window, dtype) in [None, Some(3)].into_iter().flat_map(|window| dtypes.map(|dtype| (window, dtype))) {
            tch::manual_seed(43);
            let attention = Attention { heads: 6, key_heads: 2, head_dim: 8, window };
            let heads = Tensor::randn([6, 10, 8], CPU);
            let ends: [&[usize]; 3] = [&[1, 6], &[3, 6], &[1, 2, 3, 4, 5, 6]];
            let outs = ends.map(|ends| {
                let mut cache = cache_of(64, dtype);
                let mut out = Tensor::zeros([6, 48], CPU);
                for &end in ends {
                    let step = vec![ShortRows { rows: cache.len()..end, cache: &mut cache }];
                    forward_rows(&attention, &heads, (0, step), &mut out).unwrap();
                    cache.advance(end - cache.len());
                }
                out
            });
            assert!(outs[0].equal(&outs[2]) && outs[1].equal(&outs[2]), "window {window:?}, {dtype:?}");
            assert!(!outs[2].get(5).equal(&outs[2].get(4)));
        }
    }

    #[test]
    fn rows_out_of_order_and_full_caches_are_refused() {
        let attention = Attention { heads: 6, key_heads: 2, head_dim: 8, window: None };
        let (heads, mut out) = (Tensor::randn([2, 10, 8], CPU), Tensor::zeros([2, 48], CPU));
        let (mut cache, mut other) = (cache(64), cache(64));
        let rows = vec![ShortRows { rows: 1..2, cache: &mut cache }, ShortRows { rows: 0..1, cache: &mut other }];
        assert!(forward_rows(&attention, &heads, (0, rows), &mut out).is_err());
        let outside = vec![ShortRows { rows: 1..3, cache: &mut cache }];
        assert!(forward_rows(&attention, &heads, (0, outside), &mut out).is_err());
        cache.advance(63);
        let full = vec![ShortRows { rows: 0..2, cache: &mut cache }];
        assert!(forward_rows(&attention, &heads, (0, full), &mut out).is_err());
        cache.truncate(0);
        let layer = vec![ShortRows { rows: 0..1, cache: &mut cache }];
        assert!(
            forward_rows(&attention, &heads, (2, layer), &mut out).is_err(),
            "a layer that the cache does not have"
        );
    }
}
