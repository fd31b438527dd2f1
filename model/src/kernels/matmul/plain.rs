//! Matrix products by libtorch, of every kind and on every device.

use tch::Tensor;

use crate::{error::ModelError, kernels::thread_pool::be_patient};

/// Returns `a·b`.
pub(super) fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    Ok(a.f_mm(b)?)
}

/// Writes `a·b` to `out`.
pub(super) fn mm_into(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    let _ = a.f_mm_out(out, b)?;
    Ok(())
}

/// Adds `a·b` to `out`.
pub(super) fn add_mm(out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    let _ = out.f_addmm_(a, b)?;
    Ok(())
}

/// Returns `x·wᵀ + bias`. Idle workers of the thread pool sleep: libtorch's threads need the processors.
pub(super) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    be_patient(false);
    Ok(x.f_linear(w, bias)?)
}
