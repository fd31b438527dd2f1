//! Blocks of a GGUF file, in which a base that was imported from one keeps its tensors: the codes of 32 weights of a
//! row, after their scale in half precision.
//!
//! In a folder, such a tensor has the type U8 and the shape `[out, bytes of a row]`; the bytes of a row follow from the
//! kind and the number of inputs, and so does the kind from the shape.
//!
//! Source: `block_q4_0`, `block_q4_1` and `block_q8_0` in ggml's `ggml-common.h`.

use serde::{Deserialize, Serialize};

/// The number of weights in a block.
pub const WEIGHTS: u64 = 32;

/// A kind of blocks that is kept. Tensors of all other kinds are dequantized by the import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// A scale, then codes of 4 bits from 0 to 15, less 8.
    Q4Zero,
    /// A scale and a minimum, then codes of 4 bits.
    Q4One,
    /// A scale, then codes of 8 bits.
    Q8Zero,
}

impl BlockKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Q4Zero, Self::Q4One, Self::Q8Zero];

    /// Returns the bytes of a block.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Q4Zero => 2 + WEIGHTS / 2,
            Self::Q4One => 4 + WEIGHTS / 2,
            Self::Q8Zero => 2 + WEIGHTS,
        }
    }

    /// Returns the bytes of a row with this number of inputs; `None`: the row is not whole blocks.
    #[must_use]
    pub const fn row_bytes(self, inputs: u64) -> Option<u64> {
        if inputs == 0 || !inputs.is_multiple_of(WEIGHTS) {
            return None;
        }
        (inputs / WEIGHTS).checked_mul(self.bytes())
    }

    /// Returns the kind of a tensor of this `shape` that is stored in bytes of the shape `stored`; `None`: these are
    /// not the blocks of such a tensor.
    #[must_use]
    pub fn of_shape(stored: &[u64], shape: &[u64]) -> Option<Self> {
        let (&[rows, bytes], &[outputs, inputs]) = (stored, shape) else { return None };
        let is_kind = |kind: &Self| rows == outputs && kind.row_bytes(inputs) == Some(bytes);
        Self::ALL.into_iter().find(is_kind)
    }
}

/// The weights of a base that are in blocks, and the size of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBlocks {
    /// The number of weights of projections in blocks.
    pub projection_weights: u64,
    /// The bytes of these blocks.
    pub projection_bytes: u64,
    /// The number of weights of the embedding and of the output projection in blocks.
    pub embedding_weights: u64,
    /// The bytes of these blocks.
    pub embedding_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_four_and_a_half_five_and_eight_and_a_half_bits_a_weight() {
        let bits = BlockKind::ALL.map(|kind| kind.bytes() as f64 * 8.0 / WEIGHTS as f64);
        assert_eq!(bits, [4.5, 5.0, 8.5]);
    }

    #[test]
    fn a_kind_follows_from_the_shapes() {
        for kind in BlockKind::ALL {
            let stored = [7, kind.row_bytes(96).unwrap()];
            assert_eq!(BlockKind::of_shape(&stored, &[7, 96]), Some(kind));
            for shape in [&[7, 64][..], &[8, 96], &[7, 97], &[672], &[7, 0]] {
                assert_eq!(BlockKind::of_shape(&stored, shape), None, "{shape:?}");
            }
        }
        assert_eq!(BlockKind::of_shape(&[7, 96], &[7, 96]), None);
        assert_eq!(BlockKind::Q8Zero.row_bytes(u64::MAX / 32 * 32), None);
    }
}
