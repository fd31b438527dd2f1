//! RMSNorm in one pass over the rows of contiguous tensors on the CPU.
//!
//! Shapes: `t` rows, `c` the width.

use tch::Tensor;

use super::RmsNorm;
use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share, sum_of},
        number::Real,
    },
};

/// Normalizes `x: […, c]`.
pub(super) fn forward<T: Real>(norm: &RmsNorm, x: &Tensor) -> Result<Tensor, ModelError> {
    let mut out = x.f_empty_like()?;
    normalize::<T>(numbers(x)?, numbers(&norm.weight)?, norm.epsilon, numbers_mut(&mut out)?);
    Ok(out)
}

/// Adds `x` to `sum`, and normalizes the sum.
pub(super) fn add_forward<T: Real>(norm: &RmsNorm, sum: &mut Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    let mut out = x.f_empty_like()?;
    let (sum, x, weight) = (numbers_mut(sum)?, numbers(x)?, numbers(&norm.weight)?);
    add_normalize::<T>(sum, x, weight, norm.epsilon, numbers_mut(&mut out)?);
    Ok(out)
}

/// Replaces `dy` by `dx` plus `around`.
pub(super) fn backward_around<T: Real>(
    norm: &RmsNorm,
    dy: &mut Tensor,
    x: &Tensor,
    around: &Tensor,
) -> Result<(), ModelError> {
    let (x, weight, around) = (numbers(x)?, numbers(&norm.weight)?, numbers(around)?);
    backward_slices::<T>(numbers_mut(dy)?, x, weight, norm.epsilon, around);
    Ok(())
}

/// Returns `(mean(x²) + ε)^-½`.
#[inline(always)]
fn inverse_root<T: Real>(x: &[T], epsilon: T) -> T {
    let squares = sum_of(x.len(), |at| x[at] * x[at]);
    T::ONE / (squares / T::of(x.len() as f64) + epsilon).root()
}

/// Computes the RMSNorm of `x: [t, c]`.
fn normalize<T: Real>(x: &[T], weight: &[T], epsilon: f64, out: &mut [T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(
        x.chunks(share).zip(out.chunks_mut(share)),
        #[inline(always)]
        |(x, out)| {
            for (x, out) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
                let inverse = inverse_root(x, T::of(epsilon));
                for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * inverse * weight;
                }
            }
        },
    );
}

/// Computes `sum += x`, and the RMSNorm of the sum.
fn add_normalize<T: Real>(sum: &mut [T], x: &[T], weight: &[T], epsilon: f64, out: &mut [T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(
        sum.chunks_mut(share).zip(x.chunks(share)).zip(out.chunks_mut(share)),
        #[inline(always)]
        |((sum, x), out)| {
            for ((sum, x), out) in sum.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(out.chunks_exact_mut(c)) {
                for (sum, &x) in sum.iter_mut().zip(x) {
                    *sum = *sum + x;
                }
                let inverse = inverse_root(sum, T::of(epsilon));
                for ((out, &sum), &weight) in out.iter_mut().zip(&*sum).zip(weight) {
                    *out = sum * inverse * weight;
                }
            }
        },
    );
}

/// Computes the backward of RMSNorm plus the residual's gradient, in place of `dy`: with `g = dy·w` and `i` the inverse
/// root, `i·(g - x·i²·mean(g·x)) + around`.
fn backward_slices<T: Real>(dy: &mut [T], x: &[T], weight: &[T], epsilon: f64, around: &[T]) {
    let c = weight.len();
    let share = share(x.len() / c, c) * c;
    run(
        dy.chunks_mut(share).zip(x.chunks(share)).zip(around.chunks(share)),
        #[inline(always)]
        |((dy, x), around)| {
            for ((dy, x), around) in dy.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(around.chunks_exact(c)) {
                let inverse = inverse_root(x, T::of(epsilon));
                let mean = sum_of(c, |at| dy[at] * weight[at] * x[at]) / T::of(c as f64);
                let along = inverse * inverse * mean;
                for (at, dy) in dy.iter_mut().enumerate() {
                    *dy = inverse * (*dy * weight[at] - x[at] * along) + around[at];
                }
            }
        },
    );
}
