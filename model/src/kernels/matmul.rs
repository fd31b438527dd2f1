//! Matrix products by the library that is faster on this processor: libtorch's, which is MKL, or `gemm`.
//!
//! MKL is tuned for Intel processors. On AMD processors it does not use AVX-512, and `gemm` also uses AVX2 better: on
//! Zen 5 it is twice as fast with AVX-512 and a fifth faster with AVX2 (`make bench-train ARGS="--only matmul"`). The
//! choice depends only on the processor and the sizes, so a run that resumes from a checkpoint on the same kind of
//! machine, with as many threads, gets the same bits.
//!
//! Shapes: `m` rows, `k` the inner dimension, `n` columns.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::{Matrix, multiply_at_once, numbers_mut},
        thread_pool::be_patient,
    },
};

/// The minimum number of multiplications for `gemm`.
const WORTH_IT: usize = 1 << 18;

/// The minimum number of rows for `gemm`: for the few tokens of a decoding step, MKL is a quarter faster.
const FEWEST_ROWS: usize = 16;

/// Returns `a·b`: `[m, k]` and `[k, n]` to `[m, n]`.
///
/// # Errors
/// [`ModelError::Torch`]: the shapes do not fit, or memory ran out.
pub fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    match for_gemm(a, b) {
        Some((left, right)) => product(left, right),
        None => Ok(a.f_mm(b)?),
    }
}

/// Multiplies with `gemm`, into new memory.
fn product(a: Matrix<'_, f32>, b: Matrix<'_, f32>) -> Result<Tensor, ModelError> {
    let mut out = Tensor::f_empty([a.size().0 as i64, b.size().1 as i64], (Kind::Float, Device::Cpu))?; // [m, n]
    multiply_at_once(numbers_mut(&mut out)?, a, b, false, threads());
    Ok(out)
}

/// Multiplies as [`mm`], into a contiguous `out: [m, n]`, of which the caller has the only handle.
pub(crate) fn mm_into(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    match for_gemm(a, b) {
        Some((left, right)) => multiply_at_once(numbers_mut(out)?, left, right, false, threads()),
        None => drop(a.f_mm_out(out, b)?),
    }
    Ok(())
}

/// Adds `a·b` to a contiguous `out: [m, n]`, of which the caller has the only handle.
pub(crate) fn add_mm(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    match for_gemm(a, b) {
        Some((left, right)) => multiply_at_once(numbers_mut(out)?, left, right, true, threads()),
        None => drop(out.f_addmm_(a, b)?),
    }
    Ok(())
}

/// Returns `x·wᵀ + bias`: `[m, k]` and `[n, k]` to `[m, n]`.
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let turned = w.f_tr()?; // [k, n]
    let Some((left, right)) = for_gemm(x, &turned) else {
        be_patient(false);
        return Ok(x.f_linear(w, bias)?);
    };
    let mut out = product(left, right)?;
    Ok(match bias {
        Some(bias) => out.f_add_(bias)?,
        None => out,
    })
}

fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Returns both matrices as `gemm` takes them, if `gemm` is faster.
fn for_gemm<'a>(a: &'a Tensor, b: &'a Tensor) -> Option<(Matrix<'a, f32>, Matrix<'a, f32>)> {
    if !gemm_is_faster() || a.kind() != Kind::Float {
        return None;
    }
    let (left, right) = (Matrix::of(a)?, Matrix::of(b)?);
    let ((m, k), (inner, n)) = (left.size(), right.size());
    if k != inner || m < FEWEST_ROWS || m * n * k < WORTH_IT {
        return None;
    }
    be_patient(true);
    Some((left, right))
}

/// Returns whether this is an AMD processor with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
fn gemm_is_faster() -> bool {
    use raw_cpuid::CpuId;
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(|| {
        let is_amd = CpuId::new().get_vendor_info().is_some_and(|vendor| vendor.as_str() == "AuthenticAMD");
        is_amd && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn gemm_is_faster() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

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
