//! Attention of one sequence by libtorch's flash kernel for the CPU, of any kind and any strides. The kernel never
//! stores a whole row of probabilities.
//!
//! Shapes: `s` query rows, `k` key rows, `n` key heads, `g` query heads per key head, `d` head width.

use tch::Tensor;

use crate::error::ModelError;

/// Returns `softmax(scale·q·kᵀ + mask)·v` and the scores' logsumexp. Tensors are `[n, g, s, d]`, the mask `[s, k]`;
/// without a mask it is causal.
pub(super) fn forward(
    scale: f64,
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    mask: Option<&Tensor>,
) -> Result<(Tensor, Tensor), ModelError> {
    let is_causal = mask.is_none() && query.size4()?.2 > 1;
    Ok(Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal, mask, scale)?)
}

/// Computes the gradients of [`forward`] from `d_out`, its `out` and its `logsumexp`.
pub(super) fn backward(
    scale: f64,
    d_out: &Tensor,
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    (out, logsumexp): (&Tensor, &Tensor),
    mask: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Tensor), ModelError> {
    let is_causal = mask.is_none() && query.size4()?.2 > 1;
    Ok(Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
        d_out, query, key, value, out, logsumexp, 0.0, is_causal, mask, scale,
    )?)
}
