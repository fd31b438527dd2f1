//! A matrix with a row per token: the embedding, or the output projection. The two may be one matrix.
//!
//! Shapes: `t` rows of a batch, `c` hidden width, `v` vocabulary.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::numbers_mut,
        integer_matmul::{self, tiles::Tiles},
        matmul::linear,
        placement::HOST,
    },
    quant::{gguf::GgufBlocks, tiled},
};

/// A matrix `[v, c]`.
#[derive(Debug)]
pub(crate) enum TokenMatrix {
    /// A tensor of the computation's kind.
    Dense(Tensor),
    /// In the blocks of a GGUF file, for serving.
    Blocks(GgufBlocks),
    /// In 8 bits, or in the codes of its blocks, laid out for serving.
    Tiled(Arc<Tiles>),
}

impl TokenMatrix {
    /// Returns another handle to the same matrix.
    pub(crate) fn shared(&self) -> Self {
        match self {
            Self::Dense(matrix) => Self::Dense(matrix.shallow_clone()),
            Self::Blocks(blocks) => Self::Blocks(blocks.clone()),
            Self::Tiled(tiles) => Self::Tiled(tiles.clone()),
        }
    }

    /// Returns the matrix in another kind, on another device. One in codes stays as it is.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        Ok(match self {
            Self::Dense(matrix) => Self::Dense(matrix.f_to_kind(kind)?.f_to_device(device)?),
            Self::Blocks(_) | Self::Tiled(_) => self.shared(),
        })
    }

    /// Returns whether the matrix is kept as codes.
    pub(crate) fn has_codes(&self) -> bool {
        !matches!(self, Self::Dense(_))
    }

    /// Returns the matrix in the codes of its blocks, or in 8 bits; the same, if its rows are not whole blocks.
    pub(crate) fn tiled(&self) -> Result<Self, ModelError> {
        let tiles = match self {
            Self::Dense(matrix) => tiled::of_dense(matrix)?,
            Self::Blocks(blocks) => tiled::of_blocks(std::slice::from_ref(blocks)),
            Self::Tiled(_) => None,
        };
        Ok(tiles.map_or_else(|| self.shared(), |tiles| Self::Tiled(Arc::new(tiles))))
    }

    /// Returns the kind and the device of its rows.
    pub(crate) fn options(&self) -> Result<(Kind, Device), ModelError> {
        match self {
            Self::Dense(matrix) => Ok((matrix.f_kind()?, matrix.device())),
            Self::Blocks(_) | Self::Tiled(_) => Ok(HOST),
        }
    }

    /// Returns the matrix as a tensor `[v, c]`, for training.
    ///
    /// # Errors
    /// [`ModelError::Input`]: it is in codes.
    pub(crate) fn dense(&self) -> Result<&Tensor, ModelError> {
        match self {
            Self::Dense(matrix) => Ok(matrix),
            Self::Blocks(_) | Self::Tiled(_) => {
                Err(ModelError::Input("a base that is loaded for serving cannot be trained".into()))
            }
        }
    }

    /// Returns the rows of some tokens, which must exist: `[t, c]`.
    pub(crate) fn rows(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        match self {
            Self::Dense(matrix) => {
                Ok(matrix.f_index_select(0, &Tensor::f_from_slice(ids)?.f_to_device(matrix.device())?)?)
            }
            Self::Blocks(blocks) => unpacked(ids, blocks.size().1, |id, row| blocks.row_into(id, row)),
            Self::Tiled(tiles) => unpacked(ids, tiles.size().1, |id, row| tiles.unpack_output(id, row)),
        }
    }

    /// Computes the product with each token's row: `x: [t, c] -> [t, v]`.
    pub(crate) fn products(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Dense(matrix) => linear(x, matrix, None),
            Self::Blocks(blocks) => linear(x, &blocks.dequantize()?, None),
            Self::Tiled(tiles) => integer_matmul::linear(x, tiles, None),
        }
    }

    /// Returns the size in memory, in bytes.
    pub(crate) fn bytes(&self) -> Result<usize, ModelError> {
        Ok(match self {
            Self::Dense(matrix) => matrix.numel() * matrix.f_kind()?.elt_size_in_bytes(),
            Self::Blocks(blocks) => blocks.bytes(),
            Self::Tiled(tiles) => tiles.bytes(),
        })
    }
}

/// Unpacks the rows of some tokens, of this width: `[t, c]`.
fn unpacked(ids: &[i64], width: usize, unpack: impl Fn(usize, &mut [f32])) -> Result<Tensor, ModelError> {
    let mut rows = Tensor::f_empty([ids.len() as i64, width as i64], HOST)?; // [t, c]
    for (row, &id) in numbers_mut::<f32>(&mut rows)?.chunks_exact_mut(width).zip(ids) {
        unpack(usize::try_from(id).unwrap_or(0), row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use attune_domain::architecture::gguf_blocks::BlockKind;

    use super::*;
    use crate::quant::gguf::random_blocks;

    #[test]
    fn eight_bits_give_nearly_the_rows_and_the_products() {
        tch::manual_seed(31);
        let matrix = Tensor::randn([70, 128], HOST);
        let dense = TokenMatrix::Dense(matrix.shallow_clone());
        let tiled = dense.tiled().unwrap();
        let rows = tiled.rows(&[69, 0, 3]).unwrap();
        assert!(rows.allclose(&matrix.index_select(0, &Tensor::from_slice(&[69i64, 0, 3])), 0.0, 0.02, false));
        let x = Tensor::randn([3, 128], HOST);
        let (got, want) = (tiled.products(&x).unwrap(), dense.products(&x).unwrap());
        let apart = (&got - &want).square().mean(Kind::Float).sqrt().double_value(&[]);
        assert!(apart > 0.0 && apart < 0.02 * want.square().mean(Kind::Float).sqrt().double_value(&[]), "{apart}");
        assert!(dense.dense().is_ok() && tiled.dense().is_err());
        assert!(tiled.bytes().unwrap() * 3 < dense.bytes().unwrap());
    }

    #[test]
    fn blocks_have_the_rows_and_nearly_the_products_of_their_numbers() {
        tch::manual_seed(32);
        for kind in BlockKind::ALL {
            let blocks = random_blocks(kind, (70, 128), 3);
            let dense = TokenMatrix::Dense(blocks.dequantize().unwrap());
            let (kept, x) = (TokenMatrix::Blocks(blocks), Tensor::randn([3, 128], HOST));
            let tiled = kept.tiled().unwrap();
            for (matrix, allowed) in [(&kept, 1e-6), (&tiled, 1e-3)] {
                assert!(matrix.rows(&[69, 0, 3]).unwrap().equal(&dense.rows(&[69, 0, 3]).unwrap()), "{kind:?}");
                let (got, want) = (matrix.products(&x).unwrap(), dense.products(&x).unwrap());
                let apart = (&got - &want).square().mean(Kind::Float).sqrt().double_value(&[]);
                let size = want.square().mean(Kind::Float).sqrt().double_value(&[]);
                assert!(apart <= allowed * size, "{kind:?}: {apart} {size}");
                assert!(matrix.dense().is_err() && matrix.has_codes());
            }
        }
    }

    #[test]
    fn a_width_that_is_not_whole_blocks_stays_dense() {
        let dense = TokenMatrix::Dense(Tensor::randn([5, 24], HOST));
        assert!(dense.tiled().unwrap().dense().unwrap().equal(dense.dense().unwrap()));
    }
}
