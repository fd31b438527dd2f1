//! The KV cache of one sequence, for all blocks.
//!
//! Shapes: `n` key heads, `d` head width, `capacity` allocated rows, `len` rows in use.

use attune_domain::architecture::Architecture;
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// The minimum capacity of a cache, in rows.
const SMALLEST: i64 = 64;

/// The keys and values of one sequence. The cache grows by doubling; its memory is freed when it is dropped.
#[derive(Debug)]
pub struct KvCache {
    /// The keys and values of each block, each `[n, capacity, d]`.
    layers: Vec<(Tensor, Tensor)>,
    len: i64,
    capacity: i64,
}

impl KvCache {
    /// Creates an empty cache with memory for `capacity` tokens, of this kind and on this device.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub(crate) fn new(
        architecture: &Architecture,
        capacity: usize,
        options: (Kind, Device),
    ) -> Result<Self, ModelError> {
        let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let capacity = i64::try_from(capacity).unwrap_or(i64::MAX).max(SMALLEST);
        let size = [int(architecture.num_key_value_heads), capacity, int(architecture.head_dim)];
        let layers = (0..architecture.num_hidden_layers)
            .map(|_| Ok((Tensor::f_empty(size, options)?, Tensor::f_empty(size, options)?)))
            .collect::<Result<_, ModelError>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Returns the number of tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(0)
    }

    /// Returns whether the cache has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the allocated bytes, used or not, at 4 bytes per number.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|(keys, values)| 4 * (keys.numel() + values.numel()) as u64).sum()
    }

    /// Drops all tokens from `len` on; a larger `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(i64::try_from(len).unwrap_or(i64::MAX));
    }

    /// Copies the first `len` tokens to a new cache, so that a prefix that two sequences share is computed once.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn copy_prefix(&self, len: usize) -> Result<Self, ModelError> {
        let len = i64::try_from(len).unwrap_or(i64::MAX).min(self.len);
        let mut copy = Self { layers: Vec::new(), len, capacity: len.max(SMALLEST) };
        for (keys, values) in &self.layers {
            copy.layers.push((resized(keys, len, copy.capacity)?, resized(values, len, copy.capacity)?));
        }
        Ok(copy)
    }

    /// Returns the number of tokens that memory is allocated for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        usize::try_from(self.capacity).unwrap_or(0)
    }

    /// Allocates memory for exactly `capacity` tokens in total, so that a caller can compute the size beforehand. The
    /// cache never shrinks.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn grow_to(&mut self, capacity: usize) -> Result<(), ModelError> {
        let capacity = i64::try_from(capacity).unwrap_or(i64::MAX);
        if capacity > self.capacity {
            for (keys, values) in &mut self.layers {
                (*keys, *values) = (resized(keys, self.len, capacity)?, resized(values, self.len, capacity)?);
            }
            self.capacity = capacity;
        }
        Ok(())
    }

    /// Ensures capacity for `more` tokens, at least doubling the cache when it grows.
    pub(crate) fn reserve(&mut self, more: i64) -> Result<(), ModelError> {
        let needed = self.len + more;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.max(2 * self.capacity);
        for (keys, values) in &mut self.layers {
            (*keys, *values) = (resized(keys, self.len, capacity)?, resized(values, self.len, capacity)?);
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes the new rows of a block, `[s, n, d]` each, after those in use, and returns all rows as `[len + s, n, d]`.
    /// They count only after [`KvCache::advance`], so a failure part way leaves the cache unchanged.
    pub(crate) fn write(&self, layer: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let refusal = || ModelError::Input(format!("the cache has {} layers, not {}", self.layers.len(), layer + 1));
        let (keys, values) = self.layers.get(layer).ok_or_else(refusal)?;
        let rows = key.size3()?.0;
        let put = |all: &Tensor, new: &Tensor| -> Result<Tensor, ModelError> {
            all.f_narrow(1, self.len, rows)?.f_copy_(&new.f_permute([1, 0, 2])?)?; // [n, s, d]
            Ok(all.f_narrow(1, 0, self.len + rows)?.f_permute([1, 0, 2])?)
        };
        Ok((put(keys, key)?, put(values, value)?))
    }

    /// Marks `rows` more tokens as in use.
    pub(crate) fn advance(&mut self, rows: i64) {
        self.len += rows;
    }
}

/// Copies the first `len` rows of `[n, _, d]` to new memory for `capacity` rows.
fn resized(all: &Tensor, len: i64, capacity: i64) -> Result<Tensor, ModelError> {
    let (heads, _, width) = all.size3()?;
    let larger = Tensor::f_empty([heads, capacity, width], (all.f_kind()?, all.device()))?; // [n, capacity, d]
    larger.f_narrow(1, 0, len)?.f_copy_(&all.f_narrow(1, 0, len)?)?;
    Ok(larger)
}
