//! Rows in parallel, for loops that are fused because memory bandwidth, not arithmetic, limits them: one pass instead
//! of three to eight with plain tensor operations. The loops are in the `cpu.rs` of each operation; the `plain.rs` next
//! to it has the plain version for other devices, and the operation's tests compare the two.
//!
//! Rows are divided into as many parts as libtorch has threads. Each row is computed independently, so the number of
//! threads does not change the result. `pulp` compiles the loops for the processor's vector instructions, without fused
//! multiply-add: every x86-64 processor gives the same bits.

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

/// Runs `work` for the pieces in parallel, see [`parallel_for`]. Callers mark `work` as `#[inline(always)]`.
pub(crate) fn run<P: Send>(pieces: impl Iterator<Item = P>, work: impl Fn(P) + Sync) {
    // Both closures are always inlined, into the functions compiled for the vector instructions: `dispatch` calls them once
    // for each set of instructions, and what is not inlined is compiled for the oldest processors.
    parallel_for(pieces, |piece| {
        Arch::new().dispatch(
            #[inline(always)]
            || work(piece),
        )
    });
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
