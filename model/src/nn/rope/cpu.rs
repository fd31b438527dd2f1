//! The rotation in one pass over contiguous rows on the CPU.
//!
//! Shapes: `t` rows, `d` head width.

use tch::Tensor;

use super::Angles;
use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share},
        number::Real,
    },
};

/// Rotates the first `turned` heads of `rows: [t, all, d]`, in place; with `sign` -1 it applies the inverse rotation.
pub(super) fn rotate<T: Real>(angles: &Angles, rows: &mut Tensor, turned: i64, sign: f64) -> Result<(), ModelError> {
    let (_, all, d) = rows.size3()?;
    let count = |number: i64| usize::try_from(number).unwrap_or(0);
    let heads = Heads { turned: count(turned), all: count(all), d: count(d) };
    rotate_slices::<T>(numbers_mut(rows)?, heads, (numbers(&angles.cos)?, numbers(&angles.sin)?), sign);
    Ok(())
}

/// The heads of `rows: [t, all, d]`, of which the first `turned` are rotated.
#[derive(Debug, Clone, Copy)]
struct Heads {
    turned: usize,
    all: usize,
    d: usize,
}

/// Rotates the halves of each of the first heads against each other, by the angles with the given cosines and sines
/// `[t, d/2]`; with `sign` -1 it applies the inverse rotation.
fn rotate_slices<T: Real>(rows: &mut [T], heads: Heads, (cos, sin): (&[T], &[T]), sign: f64) {
    let (half, width) = (heads.d / 2, heads.all * heads.d);
    let share = share(rows.len() / width, width);
    let angles = cos.chunks(share * half).zip(sin.chunks(share * half));
    run(
        rows.chunks_mut(share * width).zip(angles),
        #[inline(always)]
        |(rows, (cos, sin))| {
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
        },
    );
}
