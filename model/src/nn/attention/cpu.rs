//! Causal grouped-query attention of a whole flat batch, forward and backward, in tiles: a tile is [`ROWS`] query rows
//! of all heads that share a key head, and only the keys that its last row attends to are computed. libtorch's kernel
//! computes up to 512 keys for any row, which doubles the work at the usual row lengths, and takes one sequence at a
//! time.
//!
//! A task has every tile of one parity of one key head of one segment. Tasks do not depend on the number of threads,
//! and the gradients that several tasks compute for the same key are added in task order. So the number of threads does
//! not change the result, bit for bit.
//!
//! Shapes: `t` rows of the batch, `s` rows of a tile, `h` query heads, `n` key heads, `g = h/n`, `d` head width, `k`
//! keys of a segment and its past, `v` those of them that a tile computes.
//!
//! Source: Dao, arXiv:2307.08691, §3.1 and its algorithm 2, but with a single block of keys: a tile's row of
//! probabilities fits into the cache.

use std::ops::Range;

use tch::Tensor;

use super::Attention;
use crate::{
    error::ModelError,
    kernels::{
        ffi::{Matrix, multiply, numbers, numbers_mut},
        fused::{self, sum_of},
        number::Real,
    },
    segments::Segment,
};

/// The number of query rows of a tile.
const ROWS: usize = 64;

/// The number of keys above which a tile has half as many rows, so that its probabilities still fit into the cache.
const LONG: usize = 512;

/// The dimensions of an attention layer, as `usize`.
#[derive(Debug, Clone, Copy)]
struct Shape {
    n: usize,
    g: usize,
    d: usize,
    window: usize,
}

impl Shape {
    fn of(attention: &Attention) -> Self {
        let size = |number: i64| usize::try_from(number).unwrap_or(0);
        let (h, n) = (size(attention.heads), size(attention.key_heads).max(1));
        Self { n, g: h / n, d: size(attention.head_dim), window: attention.window.map_or(usize::MAX, size) }
    }

    /// Returns the width of a row of the rotated heads.
    fn width(&self) -> usize {
        (self.g + 2) * self.n * self.d
    }

    fn scale<T: Real>(&self) -> T {
        T::ONE / T::of(self.d as f64).root()
    }

    /// Returns the keys that the query at `position` attends to.
    fn seen(&self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }
}

/// The tiles of one segment, one key head and one parity.
struct Task<'a> {
    segment: &'a Segment,
    key_head: usize,
    tiles: Vec<Range<usize>>,
}

/// The tasks of a batch. For each row, `rows` holds the index of the task of its first key head, and the step to the
/// task of the next key head.
struct Plan<'a> {
    tasks: Vec<Task<'a>>,
    rows: Vec<(usize, usize)>,
}

impl<'a> Plan<'a> {
    fn new(segments: &'a [Segment], shape: Shape) -> Self {
        let count = segments.iter().map(|segment| segment.rows.end).max().unwrap_or(0);
        let mut plan = Self { tasks: Vec::new(), rows: vec![(0, 0); count] };
        for segment in segments {
            let length = segment.rows.len();
            let rows = if segment.first_position() + length > LONG { ROWS / 2 } else { ROWS };
            let tiles: Vec<_> = (0..length).step_by(rows).map(|at| at..(at + rows).min(length)).collect();
            let parities = tiles.len().min(2);
            for (at, tile) in tiles.iter().enumerate() {
                for row in tile.clone() {
                    plan.rows[segment.rows.start + row] = (plan.tasks.len() + parity(at) % parities, parities);
                }
            }
            for key_head in 0..shape.n {
                for wanted in 0..parities {
                    let mine = tiles.iter().enumerate().filter(|(at, _)| parity(*at) % parities == wanted);
                    let tiles = mine.map(|(_, tile)| tile.clone()).collect();
                    plan.tasks.push(Task { segment, key_head, tiles });
                }
            }
        }
        plan
    }

    /// Splits rows of `width`, which consist of one part of `piece` numbers per key head, among the tasks: for each
    /// task, the parts of its rows in order.
    fn deal<'b, T>(&self, all: &'b mut [T], width: usize, piece: usize, key_heads: usize) -> Vec<Vec<&'b mut [T]>> {
        let mut dealt: Vec<Vec<&mut [T]>> = self.tasks.iter().map(|_| Vec::new()).collect();
        for (row, (first, step)) in all.chunks_exact_mut(width).zip(&self.rows) {
            for (key_head, piece) in row.chunks_exact_mut(piece).take(key_heads).enumerate() {
                dealt[first + key_head * step].push(piece);
            }
        }
        dealt
    }
}

/// Returns the parity of a tile. Later tiles have more keys: the pattern 0, 1, 1, 0 gives both parities equal work.
fn parity(tile: usize) -> usize {
    usize::from(matches!(tile % 4, 1 | 2))
}

/// Computes attention for all segments of a batch at once: from the rotated `heads: [t, h+2n, d]` to `out: [t, h·d]`
/// and `logsumexp: [t, h]`.
pub(super) fn forward<T: Real>(
    attention: &Attention,
    heads: &Tensor,
    segments: &[Segment],
) -> Result<(Tensor, Tensor), ModelError> {
    let (rows, _, d) = heads.size3()?;
    let like = (heads.f_kind()?, heads.device());
    let mut out = Tensor::f_empty([rows, attention.heads * d], like)?; // [t, h·d]
    let mut logsumexp = Tensor::f_empty([rows, attention.heads], like)?; // [t, h]
    let made = (numbers_mut::<T>(&mut out)?, numbers_mut::<T>(&mut logsumexp)?);
    forward_slices(attention, numbers(heads)?, segments, made);
    Ok((out, logsumexp))
}

/// Writes `out: [t, h·d]` and `logsumexp: [t, h]` from `heads: [t, h+2n, d]`.
fn forward_slices<T: Real>(
    attention: &Attention,
    heads: &[T],
    segments: &[Segment],
    (out, logsumexp): (&mut [T], &mut [T]),
) {
    let shape = Shape::of(attention);
    let Shape { n, g, d, .. } = shape;
    let plan = Plan::new(segments, shape);
    let outs = plan.deal(out, n * g * d, g * d, n);
    let sums = plan.deal(logsumexp, n * g, g, n);
    fused::run(
        plan.tasks.iter().zip(outs).zip(sums),
        #[inline(always)]
        |((task, outs), sums)| {
            let mut rows = outs.into_iter().zip(sums);
            let [keys, values] = task.keys_and_values(shape, heads);
            for tile in &task.tiles {
                let looked = task.looked_at(shape, tile);
                let query = task.queries(shape, heads, tile);
                let (keys, values) =
                    (&keys[looked.start * d..looked.end * d], &values[looked.start * d..looked.end * d]);
                let mut p = scores(shape, &query, keys); // [g·s, v]
                let mut divisors = Vec::with_capacity(g * tile.len());
                for (at, row) in p.chunks_exact_mut(looked.len()).enumerate() {
                    let seen = task.seen(shape, tile, at, &looked);
                    divisors.push(softmax(row, seen));
                }
                let mut made = vec![T::ZERO; g * tile.len() * d];
                multiply(&mut made, Matrix::rows(&p, looked.len()), Matrix::rows(values, d), false);
                for (at, (out, sums)) in rows.by_ref().take(tile.len()).enumerate() {
                    for ((head, out), sum) in out.chunks_exact_mut(d).enumerate().zip(sums) {
                        let place = head * tile.len() + at;
                        let (largest, divisor) = divisors[place];
                        *sum = largest + T::of(divisor.wide().ln());
                        let scale = T::ONE / divisor;
                        for (out, &made) in out.iter_mut().zip(&made[place * d..(place + 1) * d]) {
                            *out = made * scale;
                        }
                    }
                }
            }
        },
    );
}

/// The forward's tensors that the backward needs.
#[derive(Clone, Copy)]
struct Forward<'a, T> {
    /// Rotated q and k, and v: `[t, h+2n, d]`.
    heads: &'a [T],
    /// The output, `[t, h·d]`.
    out: &'a [T],
    /// The logsumexp of the scores, `[t, h]`.
    logsumexp: &'a [T],
}

/// Computes the gradient `[t, h+2n, d]` of [`forward`]'s `heads` from `d_out: [t, h·d]`, its `heads`, `out` and
/// `logsumexp`.
pub(super) fn backward<T: Real>(
    attention: &Attention,
    d_out: &Tensor,
    (heads, out, logsumexp): (&Tensor, &Tensor, &Tensor),
    segments: &[Segment],
) -> Result<Tensor, ModelError> {
    let mut d_heads = heads.f_zeros_like()?; // [t, h+2n, d]
    let forward = Forward { heads: numbers(heads)?, out: numbers(out)?, logsumexp: numbers(logsumexp)? };
    backward_slices::<T>(attention, numbers(d_out)?, forward, segments, numbers_mut(&mut d_heads)?);
    Ok(d_heads)
}

/// Adds the gradients to `d_heads: [t, h+2n, d]`, initially zeros, from `d_out: [t, h·d]`.
fn backward_slices<T: Real>(
    attention: &Attention,
    d_out: &[T],
    forward: Forward<'_, T>,
    segments: &[Segment],
    d_heads: &mut [T],
) {
    let shape = Shape::of(attention);
    let Shape { n, g, d, .. } = shape;
    let plan = Plan::new(segments, shape);
    let mut kv_gradients: Vec<[Vec<T>; 2]> = plan.tasks.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    let d_queries = plan.deal(d_heads, shape.width(), g * d, n);
    fused::run(
        plan.tasks.iter().zip(d_queries).zip(&mut kv_gradients),
        #[inline(always)]
        |((task, d_queries), kv_gradients)| {
            *kv_gradients = task.backward(shape, d_out, forward, d_queries);
        },
    );
    // Rows that several segments attend to get the sum, in task order.
    for (task, kv_gradients) in plan.tasks.iter().zip(&kv_gradients) {
        for (at, gradients) in kv_gradients.iter().enumerate() {
            let column = ((g + at) * n + task.key_head) * d;
            for (row, gradient) in task.segment.chain().flat_map(Clone::clone).zip(gradients.chunks_exact(d)) {
                let place = row * shape.width() + column;
                for (sum, &gradient) in d_heads[place..place + d].iter_mut().zip(gradient) {
                    *sum = *sum + gradient;
                }
            }
        }
    }
}

impl Task<'_> {
    /// Returns the keys and the values of the segment and its past: `[k, d]` each.
    fn keys_and_values<T: Real>(&self, shape: Shape, heads: &[T]) -> [Vec<T>; 2] {
        let Shape { n, g, d, .. } = shape;
        [g * n + self.key_head, (g + 1) * n + self.key_head].map(|head| {
            let mut made = Vec::new();
            for rows in self.segment.chain() {
                made.reserve(rows.len() * d);
                for row in heads[rows.start * shape.width()..rows.end * shape.width()].chunks_exact(shape.width()) {
                    made.extend_from_slice(&row[head * d..(head + 1) * d]);
                }
            }
            made
        })
    }

    /// Gathers the query heads of this key head, for the rows of a tile: `[g·s, d]`, with the head as the outer
    /// dimension. `all: [t, width]`.
    fn gather<T: Real>(&self, shape: Shape, (all, width): (&[T], usize), tile: &Range<usize>) -> Vec<T> {
        let Shape { g, d, .. } = shape;
        let start = self.segment.rows.start;
        let rows = &all[(start + tile.start) * width..(start + tile.end) * width];
        let mut made = Vec::with_capacity(g * tile.len() * d);
        for head in self.key_head * g..(self.key_head + 1) * g {
            for row in rows.chunks_exact(width) {
                made.extend_from_slice(&row[head * d..(head + 1) * d]);
            }
        }
        made
    }

    /// Returns the scaled queries of a tile: `[g·s, d]`.
    #[inline(always)]
    fn queries<T: Real>(&self, shape: Shape, heads: &[T], tile: &Range<usize>) -> Vec<T> {
        let mut made = self.gather(shape, (heads, shape.width()), tile);
        let scale = shape.scale();
        for number in &mut made {
            *number = *number * scale;
        }
        made
    }

    /// Returns the keys that any row of a tile attends to.
    fn looked_at(&self, shape: Shape, tile: &Range<usize>) -> Range<usize> {
        let past = self.segment.first_position();
        shape.seen(past + tile.start).start..past + tile.end
    }

    /// Returns the keys that row `at` of `[g·s, v]` attends to, as a range relative to the tile's keys.
    fn seen(&self, shape: Shape, tile: &Range<usize>, at: usize, looked: &Range<usize>) -> Range<usize> {
        let seen = shape.seen(self.segment.first_position() + tile.start + at % tile.len());
        seen.start - looked.start..seen.end - looked.start
    }

    /// Writes the gradients of the queries to `d_queries`, `[g·d]` per row, and returns those of keys and values:
    /// `[k, d]` each.
    #[inline(always)]
    fn backward<T: Real>(
        &self,
        shape: Shape,
        d_out: &[T],
        forward: Forward<'_, T>,
        d_queries: Vec<&mut [T]>,
    ) -> [Vec<T>; 2] {
        let (Shape { n, g, d, .. }, scale) = (shape, shape.scale());
        let mut d_queries = d_queries.into_iter();
        let [keys, values] = self.keys_and_values(shape, forward.heads);
        let (mut d_keys, mut d_values) = (vec![T::ZERO; keys.len()], vec![T::ZERO; values.len()]);
        for tile in &self.tiles {
            let looked = self.looked_at(shape, tile);
            let (from, to) = (looked.start * d, looked.end * d);
            let query = self.queries(shape, forward.heads, tile);
            let dy = self.gather(shape, (d_out, n * g * d), tile); // [g·s, d]
            let y = self.gather(shape, (forward.out, n * g * d), tile);
            let mut p = scores(shape, &query, &keys[from..to]); // [g·s, v]
            for (at, row) in p.chunks_exact_mut(looked.len()).enumerate() {
                let place = self.segment.rows.start + tile.start + at % tile.len();
                let logsumexp = forward.logsumexp[(place * n + self.key_head) * g + at / tile.len()];
                powers(row, self.seen(shape, tile, at, &looked), logsumexp);
            }
            multiply(&mut d_values[from..to], Matrix::turned(&p, looked.len()), Matrix::rows(&dy, d), true);
            let mut d_p = scores(shape, &dy, &values[from..to]); // [g·s, v]
            let rows = d_p.chunks_exact_mut(looked.len()).zip(p.chunks_exact(looked.len()));
            for (at, (d_p, p)) in rows.enumerate() {
                let along = sum_of(d, |column| dy[at * d + column] * y[at * d + column]);
                for (d_p, &p) in d_p.iter_mut().zip(p) {
                    *d_p = (*d_p - along) * p;
                }
            }
            multiply(&mut d_keys[from..to], Matrix::turned(&d_p, looked.len()), Matrix::rows(&query, d), true);
            let mut d_query = query; // reuses the memory
            multiply(&mut d_query, Matrix::rows(&d_p, looked.len()), Matrix::rows(&keys[from..to], d), false);
            for (at, out) in d_queries.by_ref().take(tile.len()).enumerate() {
                for (head, out) in out.chunks_exact_mut(d).enumerate() {
                    let place = (head * tile.len() + at) * d;
                    for (out, &made) in out.iter_mut().zip(&d_query[place..place + d]) {
                        *out = made * scale;
                    }
                }
            }
        }
        [d_keys, d_values]
    }
}

/// Returns `a·bᵀ` of rows of `d` numbers.
fn scores<T: Real>(shape: Shape, a: &[T], b: &[T]) -> Vec<T> {
    let mut out = vec![T::ZERO; a.len() / shape.d * (b.len() / shape.d)];
    multiply(&mut out, Matrix::rows(a, shape.d), Matrix::turned(b, shape.d), false);
    out
}

/// Replaces the visible part of a row by `exp(x - max)` and the rest by zeros. Returns the maximum and the sum, by
/// which the row is not divided yet.
#[inline(always)]
fn softmax<T: Real>(row: &mut [T], seen: Range<usize>) -> (T, T) {
    let mut lanes = [T::of(f64::NEG_INFINITY); 8];
    for part in row[seen.clone()].chunks(lanes.len()) {
        for (lane, &number) in lanes.iter_mut().zip(part) {
            // Written so that NaN propagates.
            *lane = if number <= *lane { *lane } else { number };
        }
    }
    let [first, rest @ ..] = lanes;
    let largest = rest.into_iter().fold(first, |largest, lane| if lane <= largest { largest } else { lane });
    powers(row, seen.clone(), largest);
    let row = &row[seen];
    (largest, sum_of(row.len(), |at| row[at]))
}

/// Replaces the visible part of a row by `exp(x - less)` and the rest by zeros.
#[inline(always)]
fn powers<T: Real>(row: &mut [T], seen: Range<usize>, less: T) {
    row[..seen.start].fill(T::ZERO);
    row[seen.end..].fill(T::ZERO);
    for number in &mut row[seen] {
        *number = (*number - less).power();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::attention::{Sequence, tiles};
    use tch::{Device, Kind};

    /// Compares the tiles with libtorch's kernel, which runs one sequence after the other, forward and backward, on a
    /// prefix, two continuations of it, and a separate sequence.
    fn compare_tiles(window: Option<i64>, key_heads: i64, lengths: [usize; 4], (kind, rtol): (Kind, f64)) {
        let what = format!("window {window:?}, {key_heads} key heads, {lengths:?}, {kind:?}");
        tch::manual_seed(7);
        let attention = Attention { heads: 6, key_heads, head_dim: 8, window };
        let mut ends = 0;
        let mut next = |length| {
            ends += length;
            ends - length..ends
        };
        let [first, second, third, alone] = lengths.map(&mut next);
        let after = |rows, past: &[Range<usize>]| Segment { rows, past: past.to_vec() };
        let past = [first.clone(), second.clone()];
        let segments =
            [Segment::alone(first.clone()), after(second, &past[..1]), after(third, &past), Segment::alone(alone)];
        let random = |width: i64| Tensor::randn([ends as i64, width, 8], (kind, Device::Cpu));
        let (heads, d_out) = (random(6 + 2 * key_heads), random(6));
        let number = tiles(&heads).unwrap().unwrap();
        let (out, logsumexp) = attention.forward_batch(number, &heads, &segments).unwrap();
        let d_flat = d_out.view([-1, 48]);
        let got = attention.backward_batch(number, &d_flat, (&heads, &out, &logsumexp), &segments).unwrap();
        let want = heads.zeros_like();
        for segment in &segments {
            let cut = |t: &Tensor, rows: &Range<usize>| t.narrow(0, rows.start as i64, rows.len() as i64);
            let chain: Vec<Tensor> = segment.chain().map(|rows| cut(&heads, rows)).collect();
            let chain = Tensor::cat(&chain, 0);
            let [key, value] = [6, 6 + key_heads].map(|at| chain.narrow(1, at, key_heads));
            let query = cut(&heads, &segment.rows).narrow(1, 0, 6);
            let (rows, keys) = (segment.rows.len() as i64, chain.size()[0]);
            let mask = attention.mask(rows, keys, (kind, Device::Cpu)).unwrap();
            let sequence = Sequence { query: &query, key: &key, value: &value, mask: mask.as_ref() };
            let (one, sum) = attention.forward(&sequence).unwrap();
            let mine = cut(&out, &segment.rows);
            assert!(mine.allclose(&one.view([-1, 48]), rtol, rtol, false), "forward: {what}");
            let back = attention.backward(&cut(&d_out, &segment.rows), &sequence, (&one, &sum)).unwrap();
            cut(&want, &segment.rows).narrow(1, 0, 6).copy_(&back.query);
            let pairs = Tensor::cat(&[back.key, back.value], 1);
            let mut start = 0;
            for rows in segment.chain() {
                let part = pairs.narrow(0, start, rows.len() as i64);
                let _ = cut(&want, rows).narrow(1, 6, 2 * key_heads).g_add_(&part);
                start += rows.len() as i64;
            }
        }
        assert!(got.allclose(&want, rtol, rtol, false), "backward: {what}");
    }

    #[test]
    fn tiles_and_the_kernel_agree() {
        for window in [None, Some(1), Some(5), Some(90)] {
            for key_heads in [1, 2, 6] {
                for lengths in [[1, 1, 1, 1], [64, 65, 3, 128], [130, 20, 200, 257], [300, 1, 63, 64]] {
                    compare_tiles(window, key_heads, lengths, (Kind::Double, 1e-11));
                    compare_tiles(window, key_heads, lengths, (Kind::Float, 2e-5));
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit_of_tiles() {
        let attention = Attention { heads: 6, key_heads: 2, head_dim: 8, window: None };
        let heads = Tensor::randn([500, 10, 8], (Kind::Float, Device::Cpu));
        let segments = [Segment::alone(0..200), Segment { rows: 200..500, past: std::iter::once(0..200).collect() }];
        let run = |threads| {
            tch::set_num_threads(threads);
            let (out, logsumexp) = forward::<f32>(&attention, &heads, &segments).unwrap();
            let back = backward::<f32>(&attention, &out, (&heads, &out, &logsumexp), &segments).unwrap();
            (out, back)
        };
        let (one, two) = (run(1), run(2));
        assert!(one.0.equal(&two.0) && one.1.equal(&two.1));
    }
}
