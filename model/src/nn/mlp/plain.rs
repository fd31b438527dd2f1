//! SwiGLU in plain tensor operations.
//!
//! Shapes: `t` rows, `f` the inner width.

use tch::Tensor;

use crate::error::ModelError;

/// Computes `gate_up: [t, 2f] -> [t, f]`.
pub(super) fn forward(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (gate, up) = halves(gate_up)?;
    Ok(gate.f_silu()?.f_mul_(&up)?)
}

/// Computes the forward's output `[t, f]`, and the gradient `[t, 2f]` of `gate_up`.
pub(super) fn backward(dy: &Tensor, gate_up: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let (gate, up) = halves(gate_up)?;
    let silu = gate.f_silu()?; // [t, f]
    let d_gate = gate.f_silu_backward(&dy.f_mul(&up)?)?; // [t, f]
    let d_up = dy.f_mul(&silu)?; // [t, f]
    Ok((silu.f_mul(&up)?, Tensor::f_cat(&[d_gate, d_up], 1)?))
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let half = gate_up.size2()?.1 / 2;
    Ok((gate_up.f_narrow(1, 0, half)?, gate_up.f_narrow(1, half, half)?))
}
