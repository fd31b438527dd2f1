//! Causal grouped-query attention over one sequence, forward and backward.
//!
//! Shapes: `s` query rows, `k` key rows (`k ≥ s`: the queries are the last of them), `h` query heads, `g` query heads
//! per key head, `n` key heads (`h = n·g`), `d` head width.
//!
//! On a CPU, training uses `tiles.rs`, for a whole batch at once. Attention over a cache uses libtorch's flash kernel,
//! which never stores a whole row of probabilities. The key heads are its batch dimension and the query heads of one
//! key head its heads, so keys and values are not repeated. Other devices, and the tests' reference, use plain tensor
//! operations.
//!
//! Sources: Vaswani et al., arXiv:1706.03762, §3.2.1; Ainslie et al., arXiv:2305.13245 (groups); Jiang et al.,
//! arXiv:2310.06825, §2 (window); Dao et al., arXiv:2205.14135, algorithms 2 and 4.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// The dimensions of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) heads: i64,
    pub(crate) key_heads: i64,
    pub(crate) head_dim: i64,
    /// The size of the sliding window: a query sees itself and the `window - 1` positions before it.
    pub(crate) window: Option<i64>,
}

/// The masks of one sequence over one cache: for layers without and with a sliding window. `None`: the kernel needs no
/// mask.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    pub(crate) full: Option<Tensor>,
    pub(crate) windowed: Option<Tensor>,
}

impl Masks {
    /// Returns the mask for a layer, with or without a window.
    pub(crate) fn of(&self, attention: &Attention) -> Option<&Tensor> {
        if attention.window.is_some() { self.windowed.as_ref() } else { self.full.as_ref() }
    }
}

/// One sequence's part of an attention, as views.
pub(crate) struct Sequence<'a> {
    /// Query rows `[s, h, d]`.
    pub(crate) query: &'a Tensor,
    /// Key rows `[k, n, d]`.
    pub(crate) key: &'a Tensor,
    /// Value rows `[k, n, d]`.
    pub(crate) value: &'a Tensor,
    /// The result of [`Attention::mask`].
    pub(crate) mask: Option<&'a Tensor>,
}

/// The gradients of query `[s, h, d]`, key `[k, n, d]` and value `[k, n, d]`.
pub(crate) struct SequenceGradient {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl Attention {
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn group(&self) -> i64 {
        self.heads / self.key_heads
    }

    /// Views query rows as `[n, g, s, d]`.
    fn grouped(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        let count = rows.size3()?.0;
        let split = rows.f_view_([count, self.key_heads, self.group(), self.head_dim])?; // [s, n, g, d]
        Ok(split.f_permute([1, 2, 0, 3])?)
    }

    /// Views key or value rows as `[n, g, k, d]`, without a copy.
    fn shared(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        let count = rows.size3()?.0;
        let heads = rows.f_permute([1, 0, 2])?.f_unsqueeze(1)?; // [n, 1, k, d]
        Ok(heads.f_expand([self.key_heads, self.group(), count, self.head_dim], false)?)
    }

    /// Returns the mask `[s, k]` with `-∞` at hidden positions; `None` if the kernel's own causal mask, or no mask, is
    /// equivalent.
    pub(crate) fn mask(&self, queries: i64, keys: i64, options: (Kind, Device)) -> Result<Option<Tensor>, ModelError> {
        let windowed = self.window.is_some_and(|window| keys > window);
        if !windowed && (queries == 1 || queries == keys) {
            return Ok(None);
        }
        let past = keys - queries;
        let mut seen = Tensor::f_ones([queries, keys], (Kind::Bool, options.1))?.f_tril(past)?; // [s, k]
        if let Some(window) = self.window {
            seen = seen.f_triu(past - window + 1)?;
        }
        let mut mask = Tensor::f_zeros([queries, keys], options)?; // [s, k]
        Ok(Some(mask.f_masked_fill_(&seen.f_logical_not()?, f64::NEG_INFINITY)?))
    }

    /// Computes attention: `-> ([s, h, d], logsumexp)`. The backward needs `logsumexp`.
    pub(crate) fn forward(&self, sequence: &Sequence<'_>) -> Result<(Tensor, Tensor), ModelError> {
        let queries = sequence.query.size3()?.0;
        let (query, key, value) =
            (self.grouped(sequence.query)?, self.shared(sequence.key)?, self.shared(sequence.value)?);
        let (out, logsumexp) = if query.device() == Device::Cpu {
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
                &query,
                &key,
                &value,
                0.0,
                sequence.mask.is_none() && queries > 1,
                sequence.mask,
                self.scale(),
            )? // [n, g, s, d]
        } else {
            plain_forward(self.scale(), &query, &key, &value, self.full_mask(sequence.mask, &query)?.as_ref())?
        };
        let rows = out.f_permute([2, 0, 1, 3])?; // [s, n, g, d]
        Ok((rows.f_reshape([queries, self.heads, self.head_dim])?, logsumexp)) // [s, h, d]
    }

    /// Computes the gradients from `d_out: [s, h, d]`, the forward's `out: [s, h, d]` and its `logsumexp`.
    pub(crate) fn backward(
        &self,
        d_out: &Tensor,
        sequence: &Sequence<'_>,
        (out, logsumexp): (&Tensor, &Tensor),
    ) -> Result<SequenceGradient, ModelError> {
        let rows = sequence.query.size3()?.0;
        let (query, key, value) =
            (self.grouped(sequence.query)?, self.shared(sequence.key)?, self.shared(sequence.value)?);
        let (d_out, out) = (self.grouped(d_out)?, self.grouped(out)?);
        let (d_query, d_key, d_value) = if query.device() == Device::Cpu {
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &d_out,
                &query,
                &key,
                &value,
                &out,
                logsumexp,
                0.0,
                sequence.mask.is_none() && rows > 1,
                sequence.mask,
                self.scale(),
            )?
        } else {
            let mask = self.full_mask(sequence.mask, &query)?;
            plain_backward(self.scale(), &d_out, (&query, &key, &value), (&out, logsumexp), mask.as_ref())?
        };
        // [n, g, s, d] and [n, g, k, d]; keys and values are shared by their group, so their gradients add up.
        let add_up = |shared: Tensor| shared.f_sum_dim_intlist([1i64].as_slice(), false, None)?.f_permute([1, 0, 2]);
        Ok(SequenceGradient {
            query: d_query.f_permute([2, 0, 1, 3])?.f_reshape([rows, self.heads, self.head_dim])?, // [s, h, d]
            key: add_up(d_key)?,                                                                   // [k, n, d]
            value: add_up(d_value)?,
        })
    }

    /// Returns the explicit mask that the plain operations need where the kernel applies its causal mask.
    fn full_mask(&self, mask: Option<&Tensor>, query: &Tensor) -> Result<Option<Tensor>, ModelError> {
        let rows = query.size4()?.2;
        if mask.is_some() || rows == 1 {
            return Ok(mask.map(Tensor::shallow_clone));
        }
        let options = (query.f_kind()?, query.device());
        let unseen = Tensor::f_ones([rows, rows], (Kind::Bool, options.1))?.f_triu(1)?;
        Ok(Some(Tensor::f_zeros([rows, rows], options)?.f_masked_fill_(&unseen, f64::NEG_INFINITY)?))
    }
}

/// Returns `softmax(scale·q·kᵀ + mask)·v` and the scores' logsumexp. Tensors are `[n, g, s, d]`, the mask `[s, k]`.
pub(crate) fn plain_forward(
    scale: f64,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
) -> Result<(Tensor, Tensor), ModelError> {
    let scores = scores(scale, query, key, mask)?; // [n, g, s, k]
    let logsumexp = scores.f_logsumexp([-1i64].as_slice(), false)?; // [n, g, s]
    Ok((scores.f_softmax(-1, None)?.f_matmul(value)?, logsumexp))
}

/// Computes the gradients of [`plain_forward`], and recomputes its probabilities from `logsumexp`.
pub(crate) fn plain_backward(
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

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Compares the kernel with the plain operations, forward and backward, on `rows` rows after `past` rows, as views
    /// of larger buffers.
    fn compare(window: Option<i64>, key_heads: i64, past: i64, rows: i64) {
        let what = format!("window {window:?}, {key_heads} key heads, {rows} rows after {past}");
        tch::manual_seed(rows);
        let attention = Attention { heads: 6, key_heads, head_dim: 8, window };
        let query = Tensor::randn([rows + 3, 6 + 2 * key_heads, 8], DOUBLE).narrow(0, 2, rows).narrow(1, 0, 6);
        let pairs = Tensor::randn([past + rows, 2 * key_heads, 8], DOUBLE);
        let [key, value] = [0, key_heads].map(|at| pairs.narrow(1, at, key_heads));
        let mask = attention.mask(rows, past + rows, DOUBLE).unwrap();
        let sequence = Sequence { query: &query, key: &key, value: &value, mask: mask.as_ref() };
        let (out, logsumexp) = attention.forward(&sequence).unwrap();
        let (q, k, v) =
            (attention.grouped(&query).unwrap(), attention.shared(&key).unwrap(), attention.shared(&value).unwrap());
        let full = attention.full_mask(mask.as_ref(), &q).unwrap();
        let plain = plain_forward(attention.scale(), &q, &k, &v, full.as_ref()).unwrap();
        let as_rows = |t: &Tensor| t.permute([2, 0, 1, 3]).reshape([rows, 6, 8]);
        assert!(out.allclose(&as_rows(&plain.0), 1e-10, 1e-12, false), "forward: {what}");
        assert!(logsumexp.allclose(&plain.1, 1e-10, 1e-12, false), "logsumexp: {what}");

        let d_out = Tensor::randn([rows, 6, 8], DOUBLE);
        let got = attention.backward(&d_out, &sequence, (&out, &logsumexp)).unwrap();
        let d_grouped = attention.grouped(&d_out).unwrap();
        let (pq, pk, pv) =
            plain_backward(attention.scale(), &d_grouped, (&q, &k, &v), (&plain.0, &plain.1), full.as_ref()).unwrap();
        let shared = |t: &Tensor| t.sum_dim_intlist([1i64].as_slice(), false, None).permute([1, 0, 2]);
        for (name, got, want) in
            [("q", &got.query, as_rows(&pq)), ("k", &got.key, shared(&pk)), ("v", &got.value, shared(&pv))]
        {
            assert!(got.allclose(&want, 1e-10, 1e-12, false), "d{name}: {what}");
        }
    }

    #[test]
    fn the_kernel_and_the_plain_way_agree() {
        for window in [None, Some(1), Some(5)] {
            for key_heads in [1, 2, 6] {
                for (past, rows) in [(0, 1), (0, 2), (0, 7), (0, 40), (0, 150), (3, 1), (1, 9), (60, 33), (9, 140)] {
                    compare(window, key_heads, past, rows);
                }
            }
        }
    }
}
