//! Matrix products by `gemm`, on this processor, in `f32`.

use std::sync::OnceLock;

use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::{
        ffi::{Matrix, multiply_at_once, numbers_mut},
        pick::{Kernel, Number},
        placement::HOST,
        thread_pool::be_patient,
    },
};

/// The minimum number of multiplications for `gemm`.
const WORTH_IT: usize = 1 << 18;

/// The minimum number of rows for `gemm`: for the few tokens of a decoding step, MKL is a quarter faster.
const FEWEST_ROWS: usize = 16;

/// The two matrices of a product.
pub(super) type Operands<'a> = (Matrix<'a, f32>, Matrix<'a, f32>);

/// Returns both matrices as `gemm` takes them, if `gemm` is faster. Their rows or their columns are contiguous.
pub(super) fn operands<'a>(a: &'a Tensor, b: &'a Tensor) -> Result<Option<Operands<'a>>, ModelError> {
    if !gemm_is_faster() || Kernel::of(a)? != Kernel::Cpu(Number::F32) {
        return Ok(None);
    }
    let (Some(left), Some(right)) = (Matrix::of(a), Matrix::of(b)) else { return Ok(None) };
    let ((m, k), (inner, n)) = (left.size(), right.size());
    if k != inner || m < FEWEST_ROWS || m * n * k < WORTH_IT {
        return Ok(None);
    }
    be_patient(true);
    Ok(Some((left, right)))
}

/// Multiplies into new memory.
pub(super) fn mm((a, b): Operands<'_>) -> Result<Tensor, ModelError> {
    let mut out = Tensor::f_empty([a.size().0 as i64, b.size().1 as i64], HOST)?; // [m, n]
    multiply_at_once(numbers_mut(&mut out)?, a, b, false, threads());
    Ok(out)
}

/// Multiplies into `out`.
pub(super) fn mm_into(out: &mut Tensor, (a, b): Operands<'_>) -> Result<(), ModelError> {
    multiply_at_once(numbers_mut(out)?, a, b, false, threads());
    Ok(())
}

/// Adds the product to `out`.
pub(super) fn add_mm(out: &mut Tensor, (a, b): Operands<'_>) -> Result<(), ModelError> {
    multiply_at_once(numbers_mut(out)?, a, b, true, threads());
    Ok(())
}

/// Multiplies into new memory, and adds `bias`, if there is one.
pub(super) fn linear(operands: Operands<'_>, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let mut out = mm(operands)?;
    Ok(match bias {
        Some(bias) => out.f_add_(bias)?,
        None => out,
    })
}

fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
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
