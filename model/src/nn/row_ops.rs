//! Tensor operations of a linear on the rows and columns of weights, factors and outputs.
//!
//! Shapes: `t` rows (tokens), `in`, `out` widths, `r` rank.

use tch::Tensor;

use crate::{adapter::LoraPair, error::ModelError};

/// Computes `gradient += a·b`, with the product in the kind of `a` and `b`.
pub(super) fn add_product(gradient: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    if a.f_kind()? == gradient.f_kind()? {
        let _ = gradient.f_addmm_(a, b)?;
    } else {
        let _ = gradient.f_add_(&a.f_mm(b)?)?;
    }
    Ok(())
}

/// Returns the L2 norms of a weight's rows: `[out, in] -> [out]`.
pub(super) fn lengths(weight: &Tensor) -> Result<Tensor, ModelError> {
    Ok(weight.f_square()?.f_sum_dim_intlist([1i64].as_slice(), false, None)?.f_sqrt_()?)
}

/// Sets some rows of `y: [t, out of part]` to `(y + delta)` with each column scaled; the bias, which `y` includes, is
/// not scaled.
pub(super) fn scale_rows(
    y: &mut Tensor,
    delta: &Tensor,
    rows: Option<&Tensor>,
    (scale, bias): (&Tensor, Option<&Tensor>),
) -> Result<(), ModelError> {
    let picked = match rows {
        Some(rows) => y.f_index_select(0, rows)?,
        None => y.shallow_clone(),
    };
    let mut made = picked.f_add(delta)?; // [rows, out of part]
    made = match bias {
        Some(bias) => made.f_sub_(bias)?.f_mul_(scale)?.f_add_(bias)?,
        None => made.f_mul_(scale)?,
    };
    match rows {
        Some(rows) => drop(y.f_index_copy_(0, rows, &made)?),
        None => y.f_copy_(&made)?,
    }
    Ok(())
}

/// Returns the columns of `low` of the `place`-th part with factors: `[t, r]`.
pub(super) fn slice_of(low: &Tensor, place: usize, pair: &LoraPair) -> Result<Tensor, ModelError> {
    let (rank, _) = pair.a.size2()?;
    Ok(low.f_narrow(1, i64::try_from(place).unwrap_or(0) * rank, rank)?)
}

/// Concatenates tensors by rows; a single one is returned without a copy.
pub(super) fn join(mut tensors: Vec<Tensor>) -> Result<Tensor, ModelError> {
    match (tensors.len(), tensors.pop()) {
        (1, Some(one)) => Ok(one),
        (_, Some(last)) => {
            tensors.push(last);
            Ok(Tensor::f_cat(&tensors, 0)?)
        }
        (_, None) => Err(ModelError::Input("no projection was named".into())),
    }
}
