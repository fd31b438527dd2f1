//! Attention of one sequence in plain tensor operations.
//!
//! Shapes: `s` query rows, `k` key rows, `n` key heads, `g` query heads per key head, `d` head width.

use tch::Tensor;

use crate::error::ModelError;

/// Returns `softmax(scale·q·kᵀ + mask)·v` and the scores' logsumexp. Tensors are `[n, g, s, d]`, the mask `[s, k]`.
pub(super) fn forward(
    scale: f64,
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    mask: Option<&Tensor>,
) -> Result<(Tensor, Tensor), ModelError> {
    let scores = scores(scale, query, key, mask)?; // [n, g, s, k]
    let logsumexp = scores.f_logsumexp([-1i64].as_slice(), false)?; // [n, g, s]
    Ok((scores.f_softmax(-1, None)?.f_matmul(value)?, logsumexp))
}

/// Computes the gradients of [`forward`], and recomputes its probabilities from `logsumexp`.
pub(super) fn backward(
    scale: f64,
    d_out: &Tensor,
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    (out, logsumexp): (&Tensor, &Tensor),
    mask: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Tensor), ModelError> {
    let scores = scores(scale, query, key, mask)?; // [n, g, s, k]
    let p = scores.f_sub(&logsumexp.f_unsqueeze(-1)?)?.f_exp_()?; // [n, g, s, k]
    let d_value = p.f_transpose(-2, -1)?.f_matmul(d_out)?; // [n, g, k, d]
    let d_p = d_out.f_matmul(&value.f_transpose(-2, -1)?)?; // [n, g, s, k]
    let along = d_out.f_mul(out)?.f_sum_dim_intlist([-1i64].as_slice(), true, None)?; // [n, g, s, 1]
    let d_scores = d_p.f_sub(&along)?.f_mul_(&p)?.f_mul_scalar_(scale)?; // [n, g, s, k]
    let d_query = d_scores.f_matmul(key)?; // [n, g, s, d]
    let d_key = d_scores.f_transpose(-2, -1)?.f_matmul(query)?; // [n, g, k, d]
    Ok((d_query, d_key, d_value))
}

fn scores(scale: f64, query: &Tensor, key: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let mut scores = query.f_matmul(&key.f_transpose(-2, -1)?)?.f_mul_scalar_(scale)?;
    if let Some(mask) = mask {
        let _ = scores.f_add_(mask)?;
    }
    Ok(scores)
}
