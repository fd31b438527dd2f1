//! Loops that are fused because memory bandwidth, not arithmetic, limits them: one pass instead of three to eight with
//! plain tensor operations. Each has a plain version in its caller's file, for other devices; that file's tests compare
//! the two.
//!
//! Rows are divided into as many parts as libtorch has threads. Each row is computed independently, so the number of
//! threads does not change the result. `pulp` compiles the loops for the processor's vector instructions, without fused
//! multiply-add: every x86-64 processor gives the same bits.
//!
//! Shapes: `t` rows, `c` width of a row, `f` inner width, `h` heads, `d` head width.

use pulp::Arch;

use crate::kernels::{number::Real, thread_pool::parallel_for};

/// The minimum count of numbers per thread: waking a thread costs some microseconds.
const NUMBERS_PER_THREAD: usize = 1 << 14;

/// Returns how many of `rows` rows of `width` numbers one thread takes.
pub(crate) fn share(rows: usize, width: usize) -> usize {
    let most = (rows * width / NUMBERS_PER_THREAD).max(1);
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).clamp(1, most);
    rows.div_ceil(threads).max(1)
}

/// Runs `work` for the pieces in parallel, see [`parallel_for`].
pub(crate) fn run<P: Send>(pieces: impl Iterator<Item = P>, work: impl Fn(P) + Sync) {
    // `work` is called in one place only, so that it is inlined into the function compiled for the vector instructions.
    parallel_for(pieces, |piece| Arch::new().dispatch(|| work(piece)));
}

/// Sums `count` terms in eight lanes: a single running sum would wait for each addition.
#[inline(always)]
pub(crate) fn sum_of<T: Real>(count: usize, term: impl Fn(usize) -> T) -> T {
    let mut sums = [T::ZERO; 8];
    let whole = count / 8 * 8;
    for start in (0..whole).step_by(8) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = *sum + term(start + lane);
        }
    }
    let rest = (whole..count).fold(T::ZERO, |sum, at| sum + term(at));
    sums.into_iter().fold(rest, |sum, lane| sum + lane)
}

/// Returns `(mean(x²) + ε)^-½`.
#[inline(always)]
fn inverse_root<T: Real>(x: &[T], epsilon: T) -> T {
    let squares = sum_of(x.len(), |at| x[at] * x[at]);
    T::ONE / (squares / T::of(x.len() as f64) + epsilon).root()
}

/// Computes the RMSNorm of `x: [t, c]`.
pub(crate) fn rms_norm<T: Real>(x: &[T], weight: &[T], epsilon: f64, out: &mut [T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(x.chunks(share).zip(out.chunks_mut(share)), |(x, out)| {
        for (x, out) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            let inverse = inverse_root(x, T::of(epsilon));
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * inverse * weight;
            }
        }
    });
}

/// Computes `sum += x`, and the RMSNorm of the sum.
pub(crate) fn add_rms_norm<T: Real>(sum: &mut [T], x: &[T], weight: &[T], epsilon: f64, out: &mut [T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(sum.chunks_mut(share).zip(x.chunks(share)).zip(out.chunks_mut(share)), |((sum, x), out)| {
        for ((sum, x), out) in sum.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(out.chunks_exact_mut(c)) {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum = *sum + x;
            }
            let inverse = inverse_root(sum, T::of(epsilon));
            for ((out, &sum), &weight) in out.iter_mut().zip(&*sum).zip(weight) {
                *out = sum * inverse * weight;
            }
        }
    });
}

/// Computes the backward of RMSNorm plus the residual's gradient, in place of `dy`: with `g = dy·w` and `i` the inverse
/// root, `i·(g - x·i²·mean(g·x)) + around`.
pub(crate) fn rms_norm_backward<T: Real>(dy: &mut [T], x: &[T], weight: &[T], epsilon: f64, around: &[T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(dy.chunks_mut(share).zip(x.chunks(share)).zip(around.chunks(share)), |((dy, x), around)| {
        for ((dy, x), around) in dy.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(around.chunks_exact(c)) {
            let inverse = inverse_root(x, T::of(epsilon));
            let mean = sum_of(c, |at| dy[at] * weight[at] * x[at]) / T::of(c as f64);
            let along = inverse * inverse * mean;
            for (at, dy) in dy.iter_mut().enumerate() {
                *dy = inverse * (*dy * weight[at] - x[at] * along) + around[at];
            }
        }
    });
}

/// Computes `silu(gate)·up` of `gate_up: [t, 2f]`.
pub(crate) fn swiglu<T: Real>(gate_up: &[T], f: usize, out: &mut [T]) {
    let share = share(out.len() / f, 2 * f) * f;
    run(gate_up.chunks(2 * share).zip(out.chunks_mut(share)), |(gate_up, out)| {
        for (row, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
            let (gate, up) = row.split_at(f);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (T::ONE + (-gate).power()) * up;
            }
        }
    });
}

/// Computes the backward of SwiGLU in place: `gate_up: [t, 2f]` becomes its gradient, and `dy: [t, f]` the forward's
/// output, which the gradients of the next projection need.
pub(crate) fn swiglu_backward<T: Real>(gate_up: &mut [T], f: usize, dy: &mut [T]) {
    let share = share(dy.len() / f, 2 * f) * f;
    run(gate_up.chunks_mut(2 * share).zip(dy.chunks_mut(share)), |(gate_up, dy)| {
        for (row, dy) in gate_up.chunks_exact_mut(2 * f).zip(dy.chunks_exact_mut(f)) {
            let (gate, up) = row.split_at_mut(f);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let sigmoid = T::ONE / (T::ONE + (-*gate).power());
                let silu = *gate * sigmoid;
                let slope = sigmoid + silu * (T::ONE - sigmoid);
                (*gate, *up, *dy) = (*dy * *up * slope, *dy * silu, silu * *up);
            }
        }
    });
}

/// The heads of `rows: [t, all, d]`, of which the first `turned` are rotated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) turned: usize,
    pub(crate) all: usize,
    pub(crate) d: usize,
}

/// Rotates the halves of each of the first heads against each other, by the angles with the given cosines and sines
/// `[t, d/2]`; with `sign` -1 it applies the inverse rotation.
pub(crate) fn turn<T: Real>(rows: &mut [T], heads: Heads, (cos, sin): (&[T], &[T]), sign: f64) {
    let (half, width) = (heads.d / 2, heads.all * heads.d);
    let share = share(rows.len() / width, width);
    let angles = cos.chunks(share * half).zip(sin.chunks(share * half));
    run(rows.chunks_mut(share * width).zip(angles), |(rows, (cos, sin))| {
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in rows.chunks_exact_mut(width).zip(angles) {
            for head in row.chunks_exact_mut(heads.d).take(heads.turned) {
                let (first, second) = head.split_at_mut(half);
                for ((first, second), (&cos, &sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                    let sin = sin * T::of(sign);
                    (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
                }
            }
        }
    });
}

/// The number of logit rows that are summed together: constant, so that the number of threads does not change a sum.
const VOCABULARY_BLOCK: usize = 2048;

/// The sums of the softmax of each column, and the difference between the target's logit and the largest.
pub(crate) struct Softmax<T> {
    /// The sum `Σ exp(logit - largest)`.
    pub(crate) divisor: Vec<f64>,
    /// The difference `wanted - largest`; 0 only if the target's logit is the largest, NaN if a logit is.
    pub(crate) wanted: Vec<T>,
}

/// Replaces each column of `logits: [v, m]` by its softmax, not yet divided by the sum. `targets` has the target's row
/// for each column.
pub(crate) fn softmax_columns<T: Real>(logits: &mut [T], targets: &[usize]) -> Softmax<T> {
    let m = targets.len();
    let blocks = || logits.len().div_ceil(VOCABULARY_BLOCK * m);
    let mut largest = vec![vec![T::of(f64::NEG_INFINITY); m]; blocks()];
    let share = share(blocks(), VOCABULARY_BLOCK * m);
    run(logits.chunks(share * VOCABULARY_BLOCK * m).zip(largest.chunks_mut(share)), |(logits, largest)| {
        for (logits, largest) in logits.chunks(VOCABULARY_BLOCK * m).zip(largest) {
            for row in logits.chunks_exact(m) {
                for (largest, &logit) in largest.iter_mut().zip(row) {
                    // Written so that NaN propagates.
                    *largest = if logit <= *largest { *largest } else { logit };
                }
            }
        }
    });
    let larger = |a: Vec<T>, b: &Vec<T>| a.iter().zip(b).map(|(&a, &b)| if b <= a { a } else { b }).collect();
    let largest = largest.iter().fold(vec![T::of(f64::NEG_INFINITY); m], larger);
    let wanted = targets.iter().enumerate().map(|(at, &row)| logits[row * m + at] - largest[at]).collect();
    let mut sums = vec![vec![T::ZERO; m]; blocks()];
    run(logits.chunks_mut(share * VOCABULARY_BLOCK * m).zip(sums.chunks_mut(share)), |(logits, sums)| {
        for (logits, sums) in logits.chunks_mut(VOCABULARY_BLOCK * m).zip(sums) {
            for row in logits.chunks_exact_mut(m) {
                for ((logit, sum), &largest) in row.iter_mut().zip(&mut *sums).zip(&largest) {
                    *logit = (*logit - largest).power();
                    *sum = *sum + *logit;
                }
            }
        }
    });
    let mut divisor = vec![0.0; m];
    for sums in sums {
        for (divisor, sum) in divisor.iter_mut().zip(sums) {
            *divisor += sum.wide();
        }
    }
    Softmax { divisor, wanted }
}
