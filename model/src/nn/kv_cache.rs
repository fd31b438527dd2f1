//! The KV cache of one sequence, for all layers, in blocks of a pool.
//!
//! A block has the keys and values of [`BLOCK_TOKENS`] tokens in a row. Caches with a common prefix share its blocks: a
//! block is freed with the last cache that has it, and a cache copies a shared block before it writes to it. So no
//! memory is moved when a cache grows, and none is reserved for more than the tokens of a block. A pool has numbers of
//! the computation's kind, or codes of 8 bits (`block.rs`).
//!
//! Shapes: `l` layers, `n` key heads, `d` head width, `b` tokens of a block.
//!
//! Source: Kwon et al., arXiv:2309.06180, §4.2 to §4.4 (PagedAttention).

use std::{cell::Cell, ops::Range, rc::Rc};

use attune_domain::{architecture::Architecture, bytes::Bytes, serve::KvCacheDtype};
use tch::{Device, Kind, Tensor};

use crate::{error::ModelError, nn::kv_cache::block::Pairs};

mod block;

pub use block::BLOCK_TOKENS;
pub(crate) use block::Rows;

/// The memory for the blocks of many caches. Its clones are the same pool.
#[derive(Debug, Clone)]
pub struct KvPool(Rc<Pool>);

#[derive(Debug)]
struct Pool {
    /// The shape of a block: `[l, 2, n, b, d]`.
    shape: [i64; 5],
    options: (Kind, Device),
    dtype: KvCacheDtype,
    /// The maximum number of blocks.
    most: usize,
    /// The number of blocks that exist.
    used: Cell<usize>,
    block_bytes: u64,
}

/// The keys and values of a few tokens.
#[derive(Debug)]
struct Block {
    pairs: Pairs,
    pool: KvPool,
}

impl KvPool {
    /// Creates a pool without blocks, for blocks that fit into `memory` together. `options` are the kind and the device
    /// of the computation.
    pub(crate) fn new(
        architecture: &Architecture,
        memory: Bytes,
        options: (Kind, Device),
        dtype: KvCacheDtype,
    ) -> Self {
        let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (layers, heads) = (architecture.num_hidden_layers, architecture.num_key_value_heads);
        let shape = [int(layers), 2, int(heads), BLOCK_TOKENS as i64, int(architecture.head_dim)];
        let block_bytes = dtype.bytes_per_token(architecture).0.saturating_mul(BLOCK_TOKENS as u64).max(1);
        let most = usize::try_from(memory.0 / block_bytes).unwrap_or(usize::MAX);
        Self(Rc::new(Pool { shape, options, dtype, most, used: Cell::new(0), block_bytes }))
    }

    /// Returns the maximum number of tokens of all caches, if they share no blocks.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.0.most.saturating_mul(BLOCK_TOKENS)
    }

    /// Returns the memory of the blocks that exist.
    #[must_use]
    pub fn used(&self) -> Bytes {
        Bytes((self.0.used.get() as u64).saturating_mul(self.0.block_bytes))
    }

    /// Creates an empty cache without blocks.
    #[must_use]
    pub fn new_cache(&self) -> KvCache {
        KvCache { pool: self.clone(), blocks: Vec::new(), len: 0 }
    }

    /// Creates a block. Its pool must have room for it.
    fn block(&self) -> Result<Rc<Block>, ModelError> {
        let pairs = Pairs::new(&self.0.shape, self.0.options, self.0.dtype)?;
        self.0.used.set(self.0.used.get() + 1);
        Ok(Rc::new(Block { pairs, pool: self.clone() }))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let used = &self.pool.0.used;
        used.set(used.get().saturating_sub(1));
    }
}

/// The keys and values of one sequence.
#[derive(Debug)]
pub struct KvCache {
    pool: KvPool,
    /// The blocks, in the order of the tokens. Those after the tokens in use belong to this cache alone.
    blocks: Vec<Rc<Block>>,
    /// The number of tokens.
    len: usize,
}

impl KvCache {
    /// Returns the number of tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the cache has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of tokens that memory is allocated for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    /// Drops all tokens from `len` on; a larger `len` changes nothing. The memory of the cache stays allocated, but for
    /// blocks that it shares.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let used = self.len.div_ceil(BLOCK_TOKENS);
        let mut count = 0;
        self.blocks.retain(|block| {
            count += 1;
            count <= used || Rc::strong_count(block) == 1
        });
    }

    /// Returns a cache with the first `len` tokens, whose blocks both have.
    #[must_use]
    pub fn share_prefix(&self, len: usize) -> Self {
        let len = len.min(self.len);
        Self { pool: self.pool.clone(), blocks: self.blocks[..len.div_ceil(BLOCK_TOKENS)].to_vec(), len }
    }

    /// Allocates memory for `tokens` tokens in total, and copies the last block in use if it is shared. Returns
    /// `false`, without a change, if the pool has too few blocks left.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn grow_to(&mut self, tokens: usize) -> Result<bool, ModelError> {
        let last = self.len / BLOCK_TOKENS;
        let is_shared = tokens > self.len && self.blocks.get(last).is_some_and(|block| Rc::strong_count(block) > 1);
        let more = tokens.div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len());
        let pool = &self.pool.0;
        if more + usize::from(is_shared) > pool.most.saturating_sub(pool.used.get()) {
            return Ok(false);
        }
        if is_shared {
            let own = self.pool.block()?;
            own.pairs.copy_from(&self.blocks[last].pairs)?;
            self.blocks[last] = own;
        }
        for _ in 0..more {
            self.blocks.push(self.pool.block()?);
        }
        Ok(true)
    }

    /// Writes the new rows of a layer, `[s, n, d]` each, after those in use, and returns a copy of all rows as
    /// `[len + s, n, d]`. They count only after [`KvCache::advance`], so a failure part way leaves the cache unchanged.
    ///
    /// # Errors
    /// [`ModelError::Input`]: [`KvCache::grow_to`] has not allocated memory for the rows, or there is no such layer.
    /// [`ModelError::Torch`].
    pub(crate) fn write(&self, layer: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let rows = usize::try_from(key.size3()?.0).unwrap_or(0);
        let end = self.len + rows;
        if end > self.capacity() || layer as i64 >= self.pool.0.shape[0] {
            return Err(misfit());
        }
        let put = |half: i64, new: &Tensor| -> Result<Tensor, ModelError> {
            let new = new.f_permute([1, 0, 2])?; // [n, s, d]
            for (block, tokens, from) in self.parts(self.len..end) {
                let new = new.f_narrow(1, from as i64, tokens.len() as i64)?;
                block.pairs.put((layer, half), &tokens, &new)?;
            }
            let kind = self.pool.0.options.0;
            let all = self.parts(0..end).map(|(block, tokens, _)| block.pairs.get((layer, half), &tokens, kind));
            Ok(Tensor::f_cat(&all.collect::<Result<Vec<_>, _>>()?, 1)?.f_permute([1, 0, 2])?)
        };
        Ok((put(0, key)?, put(1, value)?))
    }

    /// Returns the blocks of some tokens, with the range of these in the block, and the number of those before it.
    fn parts(&self, tokens: Range<usize>) -> impl Iterator<Item = (&Block, Range<usize>, usize)> {
        let blocks = tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS);
        blocks.map(move |at| {
            let part = within(&tokens, at);
            let before = at * BLOCK_TOKENS + part.start - tokens.start;
            (&*self.blocks[at], part, before)
        })
    }

    /// Writes new rows of a layer, `[n, d]` each, as [`KvCache::write`] does, into a cache on the CPU, and
    /// returns the memory of the layer with the number of rows in use before.
    pub(crate) fn write_rows(
        &mut self,
        layer: usize,
        rows: &[(&[f32], &[f32])],
    ) -> Result<CachedLayer<'_>, ModelError> {
        let [layers, _, heads, _, d] = self.pool.0.shape.map(|size| usize::try_from(size).unwrap_or(0));
        let fits = |(key, value): &(&[f32], &[f32])| key.len() == heads * d && value.len() == heads * d;
        if layer >= layers || !rows.iter().all(fits) {
            return Err(misfit());
        }
        for (at, row) in (self.len..).zip(rows) {
            let block = self.blocks.get_mut(at / BLOCK_TOKENS).and_then(Rc::get_mut).ok_or_else(misfit)?;
            block.pairs.put_row((layer, at % BLOCK_TOKENS), (heads, d), *row)?;
        }
        let used = self.blocks.iter().take((self.len + rows.len()).div_ceil(BLOCK_TOKENS));
        let blocks = used.map(|block| block.pairs.layer(layer, heads, d));
        Ok(CachedLayer { blocks: blocks.collect::<Result<_, _>>()?, width: d, len: self.len })
    }

    /// Marks `rows` more tokens as in use.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }
}

/// Returns the part of `tokens` that is in block `at`, relative to the block.
fn within(tokens: &Range<usize>, at: usize) -> Range<usize> {
    let first = at * BLOCK_TOKENS;
    tokens.start.saturating_sub(first)..(tokens.end - first).min(BLOCK_TOKENS)
}

fn misfit() -> ModelError {
    ModelError::Input("rows that do not fit into the cache".into())
}

/// The memory of a layer's keys and values.
pub(crate) struct CachedLayer<'a> {
    /// The keys and the values of each block, `[n, b, d]`.
    blocks: Vec<(Rows<'a>, Rows<'a>)>,
    width: usize,
    /// The number of rows in use, without the new ones.
    pub(crate) len: usize,
}

impl<'a> CachedLayer<'a> {
    /// Returns the keys and the values of some rows of a head, `[_, d]` each, by block.
    pub(crate) fn rows(&self, head: usize, rows: &Range<usize>) -> Vec<(Rows<'a>, Rows<'a>)> {
        let blocks = rows.start / BLOCK_TOKENS..rows.end.div_ceil(BLOCK_TOKENS);
        let part = |at| {
            let part = within(rows, at);
            let first = head * BLOCK_TOKENS;
            let part = first + part.start..first + part.end;
            let (keys, values) = self.blocks[at];
            (keys.part(part.clone(), self.width), values.part(part, self.width))
        };
        blocks.map(part).collect()
    }
}

#[cfg(test)]
mod tests;
