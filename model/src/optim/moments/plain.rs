//! Updates of `f32` moments in plain tensor operations.

use tch::{Kind, Tensor};

use super::Update;
use crate::error::ModelError;

/// Returns whether the factor and its moments would be finite after [`apply`].
pub(super) fn stays_finite(
    update: &Update,
    factor: &Tensor,
    gradient: &Tensor,
    moments: (&Tensor, &Tensor),
) -> Result<bool, ModelError> {
    let (weight, mean, square) = next(update, factor, gradient, moments)?;
    let all = |t: &Tensor| Ok::<_, ModelError>(t.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0);
    Ok(all(&weight)? && all(&mean)? && all(&square)?)
}

/// Updates a factor and its moments.
pub(super) fn apply(
    update: &Update,
    factor: &mut Tensor,
    gradient: &Tensor,
    (mean, square): (&mut Tensor, &mut Tensor),
) -> Result<(), ModelError> {
    let (weight, next_mean, next_square) = next(update, factor, gradient, (mean, square))?;
    factor.f_copy_(&weight)?;
    (*mean, *square) = (next_mean, next_square);
    Ok(())
}

/// Returns the next factor, first moment and second moment, in PyTorch's order of operations.
pub(super) fn next(
    update: &Update,
    factor: &Tensor,
    gradient: &Tensor,
    (mean, square): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor, Tensor), ModelError> {
    let complements = (f64::from(update.complements.0), f64::from(update.complements.1));
    let mean = mean.f_lerp(gradient, complements.0)?;
    let scaled = gradient.f_mul_scalar(complements.1)?;
    let square = square.f_mul_scalar(f64::from(update.beta2))?.f_addcmul_(&scaled, gradient)?;
    let divisor = square.f_sqrt()?.f_div_scalar_(f64::from(update.root()))?.f_add_scalar_(f64::from(update.epsilon))?;
    let step = mean.f_mul_scalar(-f64::from(update.step()))?.f_div_(&divisor)?;
    Ok((factor.f_mul_scalar(f64::from(update.keep()))?.f_add_(&step)?, mean, square.f_to_kind(Kind::Float)?))
}
