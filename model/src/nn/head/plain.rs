//! The softmax of logits in plain tensor operations.
//!
//! Shapes: `m` predicted tokens, `v` vocabulary.

use tch::{Kind, Tensor};

use super::Softmax;
use crate::error::ModelError;

/// Replaces `logits: [v, m]` by `exp(logit - max)`. `ids: [1, m]` has the targets' token IDs.
pub(super) fn softmax(logits: &mut Tensor, ids: &Tensor) -> Result<Softmax, ModelError> {
    let largest = logits.f_amax([0i64].as_slice(), true)?; // [1, m]
    let wanted = logits.f_sub_(&largest)?.f_gather(0, ids, false)?; // [1, m]
    let divisor = logits.f_exp_()?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?; // [m]
    let list = |t: &Tensor| Ok::<_, ModelError>(Vec::<f64>::try_from(t.f_to_kind(Kind::Double)?.f_reshape([-1])?)?);
    Ok(Softmax { divisor: list(&divisor)?, wanted: list(&wanted)? })
}
