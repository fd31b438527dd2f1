//! Matrix products by the library that is faster on this processor: libtorch's, which is MKL, or `gemm`.
//!
//! MKL is tuned for Intel processors. On AMD processors it does not use AVX-512, and `gemm` also uses AVX2 better: on
//! Zen 5 it is twice as fast with AVX-512 and a fifth faster with AVX2 (`make bench-train ARGS="--only matmul"`). The
//! choice depends only on the processor and the sizes, so a run that resumes from a checkpoint on the same kind of
//! machine, with as many threads, gets the same bits.
//!
//! Shapes: `m` rows, `k` the inner dimension, `n` columns.

mod cpu;
mod plain;

use tch::Tensor;

use crate::error::ModelError;

/// Returns `a·b`: `[m, k]` and `[k, n]` to `[m, n]`.
///
/// # Errors
/// [`ModelError::Torch`]: the shapes do not fit, or memory ran out.
pub fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    match cpu::operands(a, b)? {
        Some(operands) => cpu::mm(operands),
        None => plain::mm(a, b),
    }
}

/// Multiplies as [`mm`], into a contiguous `out: [m, n]`, of which the caller has the only handle.
pub(crate) fn mm_into(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    match cpu::operands(a, b)? {
        Some(operands) => cpu::mm_into(out, operands),
        None => plain::mm_into(out, a, b),
    }
}

/// Adds `a·b` to a contiguous `out: [m, n]`, of which the caller has the only handle.
pub(crate) fn add_mm(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    match cpu::operands(a, b)? {
        Some(operands) => cpu::add_mm(out, operands),
        None => plain::add_mm(out, a, b),
    }
}

/// Returns `x·wᵀ + bias`: `[m, k]` and `[n, k]` to `[m, n]`.
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let turned = w.f_tr()?; // [k, n]
    match cpu::operands(x, &turned)? {
        Some(operands) => cpu::linear(operands, bias),
        None => plain::linear(x, w, bias),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ffi::{Matrix, multiply_at_once, numbers_mut};
    use tch::{Device, Kind};

    /// Independent of the processor's choice: transposed matrices, views of wider ones, and parts of uneven size.
    #[test]
    fn gemm_gives_what_libtorch_gives() {
        tch::manual_seed(12);
        let random = |rows: i64, columns: i64| Tensor::randn([rows, columns + 5], (Kind::Float, Device::Cpu));
        for (m, k, n) in [(1, 16, 1), (7, 48, 65), (64, 100, 192), (33, 576, 1000)] {
            let plain = (random(m, k).narrow(1, 3, k), random(k, n).narrow(1, 3, n));
            let turned = (random(k, m).narrow(1, 3, m).tr(), random(n, k).narrow(1, 3, k).tr());
            for (a, b) in [&plain, &turned] {
                let want = a.mm(b);
                for pieces in [1, 2, 3, 40] {
                    let mut out = Tensor::full([m, n], 7.0, (Kind::Float, Device::Cpu));
                    let of = |tensor| Matrix::<f32>::of(tensor).unwrap();
                    multiply_at_once(numbers_mut(&mut out).unwrap(), of(a), of(b), false, pieces);
                    assert!(out.allclose(&want, 1e-5, 1e-4, false), "{m} {k} {n} in {pieces}");
                    multiply_at_once(numbers_mut(&mut out).unwrap(), of(a), of(b), true, pieces);
                    assert!(out.allclose(&(&want * 2.0), 1e-5, 1e-4, false), "added: {m} {k} {n} in {pieces}");
                }
            }
        }
    }

    #[test]
    fn the_wrong_shapes_are_refused_and_other_kinds_are_libtorchs() {
        let make = |rows, columns, kind| Tensor::ones([rows, columns], (kind, Device::Cpu));
        assert!(mm(&make(100, 100, Kind::Float), &make(99, 100, Kind::Float)).is_err());
        for kind in [Kind::Double, Kind::BFloat16, Kind::Float] {
            let made = mm(&make(100, 64, kind), &make(64, 100, kind)).unwrap();
            assert_eq!((made.kind(), made.double_value(&[99, 99])), (kind, 64.0));
            let bias = make(1, 100, kind).squeeze();
            let made = linear(&make(100, 64, kind), &make(100, 64, kind), Some(&bias)).unwrap();
            assert_eq!((made.kind(), made.double_value(&[0, 0])), (kind, 65.0));
        }
    }
}
