//! RMSNorm in plain tensor operations: half-precision kinds are computed in `f32`, as in transformers.
//!
//! Shapes: `…` any leading dimensions, `c` the width.

use tch::Tensor;

use super::{RmsNorm, at_least_float};
use crate::error::ModelError;

/// Normalizes `x: […, c]`.
pub(super) fn forward(norm: &RmsNorm, x: &Tensor) -> Result<Tensor, ModelError> {
    let kind = x.f_kind()?;
    let wide = x.f_to_kind(at_least_float(kind))?;
    let normed = wide.f_mul(&inverse_root(norm, &wide)?)?; // […, c]
    Ok(normed.f_to_kind(kind)?.f_mul_(&norm.weight)?)
}

/// Adds `x` to `sum`, and normalizes the sum.
pub(super) fn add_forward(norm: &RmsNorm, sum: &mut Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    let _ = sum.f_add_(x)?;
    forward(norm, sum)
}

/// Computes `dx: […, c]` from `dy: […, c]` and the forward's `x`.
pub(super) fn backward(norm: &RmsNorm, dy: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    let kind = x.f_kind()?;
    let x = &x.f_to_kind(at_least_float(kind))?;
    let inverse = inverse_root(norm, x)?; // […, 1]
    let mut g = dy.f_mul(&norm.weight)?.f_to_kind(at_least_float(kind))?; // […, c]
    let mut mean = g.f_mul(x)?.f_mean_dim([-1i64].as_slice(), true, None)?; // […, 1]
    let along = mean.f_mul_(&inverse)?.f_mul_(&inverse)?.f_neg_()?; // […, 1]
    Ok(g.f_addcmul_(x, &along)?.f_mul_(&inverse)?.f_to_kind(kind)?)
}

/// Computes `(mean(x²) + ε)^-½`: `[…, c] -> […, 1]`.
fn inverse_root(norm: &RmsNorm, x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(x.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?.f_add_scalar_(norm.epsilon)?.f_rsqrt_()?)
}
