//! The forward of a block over KV caches. Shapes as in `block.rs`.

use std::ops::Range;

use tch::Tensor;

use super::{Block, rows_of};
use crate::{
    error::ModelError,
    kernels::{
        pick::{Kernel, Number},
        thread_pool::be_patient,
    },
    nn::{
        attention::{
            Masks, Sequence,
            cached::{ShortRows, forward_rows},
        },
        kv_cache::KvCache,
        linear::RowGroup,
        low_rank::FEW_ROWS,
        mlp::swiglu,
        rope::Angles,
    },
    segments::Segment,
};

/// One sequence's rows of a batch, with its KV cache.
pub(crate) struct CachedRows<'a> {
    pub(crate) rows: i64,
    pub(crate) cache: &'a mut KvCache,
    pub(crate) masks: Masks,
}

impl Block {
    /// Runs the block over the KV caches of its sequences, `x: [t, c] -> [t, c]`, and appends the new keys and values
    /// of `layer` to them.
    pub(crate) fn forward_cached(
        &self,
        x: &Tensor,
        (layer, sequences): (usize, &mut [CachedRows<'_>]),
        angles: &Angles,
        groups: &[RowGroup<'_>],
    ) -> Result<Tensor, ModelError> {
        let qkv = self.qkv.forward_rows(&self.input_norm.forward(x)?, groups)?; // [t, (h+2n)·d]
        let heads = self.heads(&qkv, angles)?; // [t, h+2n, d]
        let attended = if Kernel::of(&heads)? == Kernel::Cpu(Number::F32) {
            self.attend_rows(&heads, layer, sequences)?
        } else {
            self.attend_cached(&heads, layer, sequences)?
        }; // [t, h·d]
        let mut middle = self.o.forward_rows(&attended, groups)?; // [t, c]
        let normed = self.post_norm.add_forward(&mut middle, x)?; // [t, c]
        let inner = swiglu(&self.gate_up.forward_rows(&normed, groups)?)?; // [t, f]
        Ok(self.down.forward_rows(&inner, groups)?.f_add_(&middle)?)
    }

    /// Computes attention of rows to their KV caches, after appending their keys and values, one sequence after the
    /// other: `heads: [t, h+2n, d] -> [t, h·d]`.
    fn attend_cached(
        &self,
        heads: &Tensor,
        layer: usize,
        sequences: &mut [CachedRows<'_>],
    ) -> Result<Tensor, ModelError> {
        let mut parts = Vec::with_capacity(sequences.len());
        let mut start = 0;
        for sequence in sequences {
            let rows = start..start + sequence.rows as usize;
            start = rows.end;
            parts.push(self.attend_one(heads, layer, (&*sequence, rows))?);
        }
        self.join(parts)
    }

    /// Computes attention of one sequence's rows: `[s, h, d]`.
    fn attend_one(
        &self,
        heads: &Tensor,
        layer: usize,
        (sequence, rows): (&CachedRows<'_>, Range<usize>),
    ) -> Result<Tensor, ModelError> {
        let [query, key, value] = self.cut(heads, &Segment::alone(rows))?;
        let (key, value) = sequence.cache.write(layer, &key, &value)?; // [k, n, d]
        let mask = sequence.masks.of(&self.attention);
        Ok(self.attention.forward(&Sequence { query: &query, key: &key, value: &value, mask })?.0)
    }

    /// Computes as [`Block::attend_cached`], with the sequences of few rows, which are those that decode, in one pass
    /// over the memory of all their caches.
    fn attend_rows(
        &self,
        heads: &Tensor,
        layer: usize,
        sequences: &mut [CachedRows<'_>],
    ) -> Result<Tensor, ModelError> {
        let width = self.attention.heads * self.attention.head_dim;
        let mut out = Tensor::f_empty([heads.size3()?.0, width], (heads.f_kind()?, heads.device()))?; // [t, h·d]
        let mut start = 0;
        for sequence in &*sequences {
            let rows = start..start + sequence.rows as usize;
            start = rows.end;
            if rows.len() > FEW_ROWS {
                be_patient(false); // libtorch's threads need the processors
                let part = self.attend_one(heads, layer, (sequence, rows.clone()))?.f_view_([-1, width])?;
                rows_of(&out, &rows)?.f_copy_(&part)?;
            }
        }
        let mut decoding = Vec::with_capacity(sequences.len());
        let mut row = 0;
        for sequence in sequences {
            let rows = row..row + sequence.rows as usize;
            row = rows.end;
            if rows.len() <= FEW_ROWS {
                decoding.push(ShortRows { rows, cache: &mut *sequence.cache });
            }
        }
        forward_rows(&self.attention, heads, (layer, decoding), &mut out)?;
        Ok(out)
    }
}
