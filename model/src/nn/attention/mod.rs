//! Causal grouped-query attention, forward and backward: `softmax(scale·q·kᵀ + mask)·v`.
//!
//! Shapes: `s` query rows, `k` key rows (`k ≥ s`: the queries are the last of them), `h` query heads, `g` query heads
//! per key head, `n` key heads (`h = n·g`), `d` head width.
//!
//! On a CPU, training uses the tiles of `cpu.rs`, for a whole batch at once. Attention over a cache uses libtorch's
//! flash kernel (`flash.rs`). The key heads are its batch dimension and the query heads of one key head its heads, so
//! keys and values are not repeated. In `f32`, sequences with few new rows, which are those that decode, use fused
//! loops over the memory of all their caches (`cached.rs`). Other devices, and the tests' reference, use plain tensor
//! operations (`plain.rs`), one sequence after the other.
//!
//! Sources: Vaswani et al., arXiv:1706.03762, §3.2.1; Ainslie et al., arXiv:2305.13245 (groups); Jiang et al.,
//! arXiv:2310.06825, §2 (window); Dao et al., arXiv:2205.14135, algorithms 2 and 4.

pub(crate) mod cached;
mod cpu;
mod flash;
mod plain;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::pick::{Kernel, Number, is_on_cpu},
    segments::Segment,
};

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

/// Returns the number type of the tiles that compute a whole batch in the kind and on the device of `like`; `None`:
/// there are none, and [`Attention::forward`] takes one sequence after the other.
pub(crate) fn tiles(like: &Tensor) -> Result<Option<Number>, ModelError> {
    Ok(match Kernel::of(like)? {
        Kernel::Cpu(number) => Some(number),
        Kernel::Plain => None,
    })
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

    /// Computes attention for all segments of a batch at once, in tiles of this number type: from the rotated
    /// `heads: [t, h+2n, d]` to `out: [t, h·d]` and `logsumexp: [t, h]`, which the backward needs.
    pub(crate) fn forward_batch(
        &self,
        number: Number,
        heads: &Tensor,
        segments: &[Segment],
    ) -> Result<(Tensor, Tensor), ModelError> {
        match number {
            Number::F32 => cpu::forward::<f32>(self, heads, segments),
            Number::F64 => cpu::forward::<f64>(self, heads, segments),
        }
    }

    /// Computes the gradient `[t, h+2n, d]` of `heads` from `d_out: [t, h·d]` and the `heads`, `out` and `logsumexp` of
    /// [`Attention::forward_batch`].
    pub(crate) fn backward_batch(
        &self,
        number: Number,
        d_out: &Tensor,
        forward: (&Tensor, &Tensor, &Tensor),
        segments: &[Segment],
    ) -> Result<Tensor, ModelError> {
        match number {
            Number::F32 => cpu::backward::<f32>(self, d_out, forward, segments),
            Number::F64 => cpu::backward::<f64>(self, d_out, forward, segments),
        }
    }

    /// Computes attention: `-> ([s, h, d], logsumexp)`. The backward needs `logsumexp`.
    pub(crate) fn forward(&self, sequence: &Sequence<'_>) -> Result<(Tensor, Tensor), ModelError> {
        let queries = sequence.query.size3()?.0;
        let (query, key, value) =
            (self.grouped(sequence.query)?, self.shared(sequence.key)?, self.shared(sequence.value)?);
        let inputs = (&query, &key, &value);
        let (out, logsumexp) = if is_on_cpu(&query) {
            flash::forward(self.scale(), inputs, sequence.mask)?
        } else {
            plain::forward(self.scale(), inputs, self.full_mask(sequence.mask, &query)?.as_ref())?
        }; // [n, g, s, d]
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
        let (inputs, forward) = ((&query, &key, &value), (&out, logsumexp));
        let (d_query, d_key, d_value) = if is_on_cpu(&query) {
            flash::backward(self.scale(), &d_out, inputs, forward, sequence.mask)?
        } else {
            let mask = self.full_mask(sequence.mask, &query)?;
            plain::backward(self.scale(), &d_out, inputs, forward, mask.as_ref())?
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
        let plain = plain::forward(attention.scale(), (&q, &k, &v), full.as_ref()).unwrap();
        let as_rows = |t: &Tensor| t.permute([2, 0, 1, 3]).reshape([rows, 6, 8]);
        assert!(out.allclose(&as_rows(&plain.0), 1e-10, 1e-12, false), "forward: {what}");
        assert!(logsumexp.allclose(&plain.1, 1e-10, 1e-12, false), "logsumexp: {what}");

        let d_out = Tensor::randn([rows, 6, 8], DOUBLE);
        let got = attention.backward(&d_out, &sequence, (&out, &logsumexp)).unwrap();
        let d_grouped = attention.grouped(&d_out).unwrap();
        let (pq, pk, pv) =
            plain::backward(attention.scale(), &d_grouped, (&q, &k, &v), (&plain.0, &plain.1), full.as_ref()).unwrap();
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
