//! SwiGLU in one pass over the rows of contiguous tensors on the CPU.
//!
//! Shapes: `t` rows, `f` the inner width.

use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share},
        number::Real,
    },
};

/// Computes `gate_up: [t, 2f] -> [t, f]`.
pub(super) fn forward<T: Real>(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (rows, f) = (gate_up.size2()?.0, gate_up.size2()?.1 / 2);
    let mut out = Tensor::f_empty([rows, f], (gate_up.f_kind()?, gate_up.device()))?; // [t, f]
    forward_slices::<T>(numbers(gate_up)?, usize::try_from(f).unwrap_or(0), numbers_mut(&mut out)?);
    Ok(out)
}

/// Replaces `dy: [t, f]` by the forward's output, and `gate_up: [t, 2f]` by its gradient.
pub(super) fn backward<T: Real>(dy: &mut Tensor, gate_up: &mut Tensor) -> Result<(), ModelError> {
    let f = usize::try_from(dy.size2()?.1).unwrap_or(0);
    backward_slices::<T>(numbers_mut(gate_up)?, f, numbers_mut(dy)?);
    Ok(())
}

/// Computes `silu(gate)·up` of `gate_up: [t, 2f]`.
fn forward_slices<T: Real>(gate_up: &[T], f: usize, out: &mut [T]) {
    let share = share(out.len() / f, 2 * f) * f;
    run(
        gate_up.chunks(2 * share).zip(out.chunks_mut(share)),
        #[inline(always)]
        |(gate_up, out)| {
            for (row, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
                let (gate, up) = row.split_at(f);
                for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (T::ONE + (-gate).power()) * up;
                }
            }
        },
    );
}

/// Computes the backward of SwiGLU in place: `gate_up: [t, 2f]` becomes its gradient, and `dy: [t, f]` the forward's
/// output, which the gradients of the next projection need.
fn backward_slices<T: Real>(gate_up: &mut [T], f: usize, dy: &mut [T]) {
    let share = share(dy.len() / f, 2 * f) * f;
    run(
        gate_up.chunks_mut(2 * share).zip(dy.chunks_mut(share)),
        #[inline(always)]
        |(gate_up, dy)| {
            for (row, dy) in gate_up.chunks_exact_mut(2 * f).zip(dy.chunks_exact_mut(f)) {
                let (gate, up) = row.split_at_mut(f);
                for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                    let sigmoid = T::ONE / (T::ONE + (-*gate).power());
                    let silu = *gate * sigmoid;
                    let slope = sigmoid + silu * (T::ONE - sigmoid);
                    (*gate, *up, *dy) = (*dy * *up * slope, *dy * silu, silu * *up);
                }
            }
        },
    );
}
