//! The rotation in plain tensor operations.
//!
//! Shapes: `t` rows, `d` head width.

use tch::Tensor;

use super::Angles;
use crate::error::ModelError;

/// Rotates the first `turned` heads of `rows: [t, all, d]`, in place; with `sign` -1 it applies the inverse rotation.
pub(super) fn rotate(angles: &Angles, rows: &Tensor, turned: i64, sign: f64) -> Result<(), ModelError> {
    let half = rows.size3()?.2 / 2;
    let heads = rows.f_narrow(1, 0, turned)?;
    let (mut first, mut second) = (heads.f_narrow(2, 0, half)?, heads.f_narrow(2, half, half)?); // [t, turned, d/2]
    let (cos, sin) = (angles.cos.f_unsqueeze(1)?, angles.sin.f_unsqueeze(1)?.f_mul_scalar(sign)?); // [t, 1, d/2]
    let old = first.f_mul(&sin)?; // [t, turned, d/2]
    let _ = first.f_mul_(&cos)?.f_sub_(&second.f_mul(&sin)?)?;
    let _ = second.f_mul_(&cos)?.f_add_(&old)?;
    Ok(())
}
