//! The nonlinearity of the feed-forward block, SwiGLU: `silu(gate) · up`, forward and backward.
//!
//! Shapes: `t` rows, `f` the inner width. `gate` and `up` come side by side from one linear: `[t, 2f]`.
//!
//! Source: Shazeer, arXiv:2002.05202, eq. 5 (without biases).

use tch::Tensor;

use crate::error::ModelError;

/// `gate_up: [t, 2f] -> [t, f]`.
pub(crate) fn swiglu(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (gate, up) = halves(gate_up)?;
    Ok(gate.f_silu()?.f_mul_(&up)?)
}

/// `dy: [t, f]` and the forward's `gate_up: [t, 2f]` to `[t, 2f]`.
pub(crate) fn swiglu_backward(dy: &Tensor, gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (gate, up) = halves(gate_up)?;
    let out = gate_up.f_empty_like()?; // [t, 2f]
    let (out_gate, out_up) = halves(&out)?;
    let _ = gate.f_silu_backward_grad_input(&out_gate, &dy.f_mul(&up)?)?;
    let _ = gate.f_silu()?.f_mul_out(&out_up, dy)?;
    Ok(out)
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let half = gate_up.size2()?.1 / 2;
    Ok((gate_up.f_narrow(1, 0, half)?, gate_up.f_narrow(1, half, half)?))
}
