//! The number types of tensors in a GGUF file.

/// The number type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    /// Blocks of 32 5-bit integers with a 16-bit scale.
    Q5Zero,
    /// Blocks of 32 8-bit integers with a 16-bit scale.
    Q8Zero,
    /// Blocks of 256 4-bit integers: 8 parts, each with a scale and a minimum of 6 bits.
    Q4K,
    /// Blocks of 256 6-bit integers: 16 parts, each with a scale of 8 bits.
    Q6K,
}

impl Kind {
    /// Returns the number of the type. Source: `enum ggml_type` in ggml's `ggml.h`.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q5Zero => 6,
            Self::Q8Zero => 8,
            Self::Q4K => 12,
            Self::Q6K => 14,
        }
    }

    /// Returns the number of weights in a block, and its bytes. Source: `block_…` in ggml's `ggml-common.h`.
    pub(crate) const fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 => (1, 2),
            Self::Q5Zero => (32, 2 + 4 + 16),
            Self::Q8Zero => (32, 2 + 32),
            Self::Q4K => (256, 2 + 2 + 12 + 128),
            Self::Q6K => (256, 128 + 64 + 16 + 2),
        }
    }

    /// Returns the bytes of this number of weights, in whole blocks.
    pub(crate) const fn bytes_of(self, weights: u64) -> u64 {
        let (count, bytes) = self.block();
        weights / count * bytes
    }

    /// Returns whether rows of this length are whole blocks.
    pub(crate) const fn fits(self, columns: u64) -> bool {
        columns.is_multiple_of(self.block().0)
    }
}
