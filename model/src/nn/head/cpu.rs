//! The softmax of logits in two passes over contiguous memory on the CPU.
//!
//! Shapes: `m` predicted tokens, `v` vocabulary.

use tch::Tensor;

use super::Softmax;
use crate::{
    batch::Target,
    error::ModelError,
    kernels::{
        ffi::numbers_mut,
        fused::{run, share},
        number::Real,
    },
};

/// Replaces `logits: [v, m]` by `exp(logit - max)`.
pub(super) fn softmax<T: Real>(logits: &mut Tensor, targets: &[Target]) -> Result<Softmax, ModelError> {
    let ids: Vec<usize> = targets.iter().map(|target| target.id as usize).collect();
    Ok(softmax_columns::<T>(numbers_mut(logits)?, &ids))
}

/// The number of logit rows that are summed together: constant, so that the number of threads does not change a sum.
const VOCABULARY_BLOCK: usize = 2048;

/// Replaces each column of `logits: [v, m]` by its softmax, not yet divided by the sum. `targets` has the target's row
/// for each column.
fn softmax_columns<T: Real>(logits: &mut [T], targets: &[usize]) -> Softmax {
    let m = targets.len();
    let blocks = || logits.len().div_ceil(VOCABULARY_BLOCK * m);
    let mut largest = vec![vec![T::of(f64::NEG_INFINITY); m]; blocks()];
    let share = share(blocks(), VOCABULARY_BLOCK * m);
    run(
        logits.chunks(share * VOCABULARY_BLOCK * m).zip(largest.chunks_mut(share)),
        #[inline(always)]
        |(logits, largest)| {
            for (logits, largest) in logits.chunks(VOCABULARY_BLOCK * m).zip(largest) {
                for row in logits.chunks_exact(m) {
                    for (largest, &logit) in largest.iter_mut().zip(row) {
                        // Written so that NaN propagates.
                        *largest = if logit <= *largest { *largest } else { logit };
                    }
                }
            }
        },
    );
    let larger = |a: Vec<T>, b: &Vec<T>| a.iter().zip(b).map(|(&a, &b)| if b <= a { a } else { b }).collect();
    let largest = largest.iter().fold(vec![T::of(f64::NEG_INFINITY); m], larger);
    let wanted: Vec<T> = targets.iter().enumerate().map(|(at, &row)| logits[row * m + at] - largest[at]).collect();
    let mut sums = vec![vec![T::ZERO; m]; blocks()];
    run(
        logits.chunks_mut(share * VOCABULARY_BLOCK * m).zip(sums.chunks_mut(share)),
        #[inline(always)]
        |(logits, sums)| {
            for (logits, sums) in logits.chunks_mut(VOCABULARY_BLOCK * m).zip(sums) {
                for row in logits.chunks_exact_mut(m) {
                    for ((logit, sum), &largest) in row.iter_mut().zip(&mut *sums).zip(&largest) {
                        *logit = (*logit - largest).power();
                        *sum = *sum + *logit;
                    }
                }
            }
        },
    );
    let mut divisor = vec![0.0; m];
    for sums in sums {
        for (divisor, sum) in divisor.iter_mut().zip(sums) {
            *divisor += sum.wide();
        }
    }
    Softmax { divisor, wanted: wanted.into_iter().map(Real::wide).collect() }
}
