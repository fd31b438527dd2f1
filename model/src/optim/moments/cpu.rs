//! Updates in one pass over a contiguous factor on the CPU, for `f32` moments and for 8-bit ones.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tch::Tensor;

use super::{
    Update,
    codes::{BLOCK, Codes, SIGNED, UNSIGNED},
    is_finite,
};
use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share},
    },
};

/// Returns whether the factor and its moments would be finite after [`apply`].
pub(super) fn stays_finite(
    update: &Update,
    factor: &Tensor,
    gradient: &Tensor,
    (mean, square): (&Tensor, &Tensor),
) -> Result<bool, ModelError> {
    let (weights, gradients) = (numbers::<f32>(factor)?, numbers::<f32>(gradient)?);
    let (means, squares) = (numbers::<f32>(mean)?, numbers::<f32>(square)?);
    let scalars = (update.keep(), update.step(), update.root());
    let share = share(weights.len(), 1);
    let pieces = weights.chunks(share).zip(gradients.chunks(share));
    let moments = means.chunks(share).zip(squares.chunks(share));
    let all = AtomicBool::new(true);
    run(
        pieces.zip(moments),
        #[inline(always)]
        |((weights, gradients), (means, squares))| {
            // No early exit, so that the loop is vectorized over eight numbers.
            let piece = weights.iter().zip(gradients).zip(means.iter().zip(squares));
            let stays =
                piece.fold(true, |all, ((&w, &g), (&m, &s))| all & is_finite(update.full(scalars, w, g, (m, s))));
            all.fetch_and(stays, Relaxed);
        },
    );
    Ok(all.load(Relaxed))
}

/// Updates a factor and its moments in PyTorch's order of operations.
pub(super) fn apply(
    update: &Update,
    factor: &mut Tensor,
    gradient: &Tensor,
    (mean, square): (&mut Tensor, &mut Tensor),
) -> Result<(), ModelError> {
    let (weights, gradients) = (numbers_mut::<f32>(factor)?, numbers::<f32>(gradient)?);
    let (means, squares) = (numbers_mut::<f32>(mean)?, numbers_mut::<f32>(square)?);
    let scalars = (update.keep(), update.step(), update.root());
    let share = share(weights.len(), 1);
    let pieces = weights.chunks_mut(share).zip(gradients.chunks(share));
    let moments = means.chunks_mut(share).zip(squares.chunks_mut(share));
    run(
        pieces.zip(moments),
        #[inline(always)]
        |((weights, gradients), (means, squares))| {
            for ((w, &g), (m, s)) in weights.iter_mut().zip(gradients).zip(means.iter_mut().zip(squares)) {
                (*w, *m, *s) = update.full(scalars, *w, g, (*m, *s));
            }
        },
    );
    Ok(())
}

/// Returns whether the factor and its moments would be finite after [`apply_packed`].
pub(super) fn packed_stays_finite(
    update: &Update,
    factor: &Tensor,
    gradient: &Tensor,
    (mean, square): (&Codes, &Codes),
) -> Result<bool, ModelError> {
    let (weights, gradients) = (numbers::<f32>(factor)?, numbers::<f32>(gradient)?);
    Ok(weights
        .iter()
        .zip(gradients)
        .enumerate()
        .all(|(at, (&w, &g))| is_finite(update.packed(w, g, (mean.get(&SIGNED, at), square.get(&UNSIGNED, at))))))
}

/// Updates a factor and its 8-bit moments in bitsandbytes' order of operations.
pub(super) fn apply_packed(
    update: &Update,
    factor: &mut Tensor,
    gradient: &Tensor,
    (mean, square): (&mut Codes, &mut Codes),
) -> Result<(), ModelError> {
    let (weights, gradients) = (numbers_mut::<f32>(factor)?, numbers::<f32>(gradient)?);
    for (block, (weights, gradients)) in weights.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK)).enumerate() {
        let (mut means, mut squares) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
        for (i, (w, &g)) in weights.iter_mut().zip(gradients).enumerate() {
            let at = block * BLOCK + i;
            let (next, m, s) = update.packed(*w, g, (mean.get(&SIGNED, at), square.get(&UNSIGNED, at)));
            *w = next;
            means.push(m);
            squares.push(s);
        }
        mean.set(&SIGNED, block, &means);
        square.set(&UNSIGNED, block, &squares);
    }
    Ok(())
}
