//! Unpacking in plain tensor operations, on any device.

use tch::{Kind, Tensor};

use super::BLOCK;
use crate::{error::ModelError, quant::nf4_tables::LEVELS};

/// Returns the numbers `[out, in]` that `cpu.rs` unpacks.
pub(super) fn unpack(codes: &Tensor, scales: &Tensor, (out, ins): (i64, i64)) -> Result<Tensor, ModelError> {
    let codes = codes.f_to_kind(Kind::Int64)?; // [n/2]
    let (high, low) = (codes.f_bitwise_right_shift_tensor_scalar(4)?, codes.f_bitwise_and(15)?);
    let places = Tensor::f_stack(&[high, low], 1)?.f_view_([-1])?.f_narrow(0, 0, out * ins)?; // [n]
    let levels = Tensor::f_from_slice(&LEVELS)?.f_to_device(codes.device())?;
    let scales = scales.f_repeat_interleave_self_int(BLOCK as i64, 0, None)?.f_narrow(0, 0, out * ins)?; // [n]
    Ok(levels.f_index_select(0, &places)?.f_mul_(&scales)?.f_view_([out, ins])?)
}
