//! The weight of a frozen linear, in the form in which it is kept.
//!
//! Shapes: `out`, `in` widths.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{ffi::numbers_mut, integer_matmul::tiles::Tiles, placement::HOST},
    nn::row_ops::join,
    quant::{gguf::GgufBlocks, int8::Int8, nf4::Nf4, packed::Packed, tiled},
};

/// A weight `[out, in]` of one or more projections, the parts concatenated by rows.
#[derive(Debug)]
pub(crate) enum Weight {
    /// One tensor `[out, in]`.
    Dense(Tensor),
    /// NF4 weights, one per part.
    Nf4(Vec<Nf4>),
    /// Int8 weights, one per part.
    Int8(Vec<Int8>),
    /// Blocks of a GGUF file, on the CPU, a weight per part.
    Blocks(Vec<GgufBlocks>),
    /// The codes of all parts, laid out for serving.
    Tiled(Arc<Tiles>),
}

impl Weight {
    /// Joins the projections of a linear. Those in blocks stay in them if all are; else they are dequantized.
    pub(crate) fn of(parts: Vec<Packed>) -> Result<Self, ModelError> {
        let has_dense = parts.iter().any(|part| matches!(part, Packed::Dense(_)));
        let (mut dense, mut nf4, mut int8, mut blocks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            match part {
                Packed::Dense(weight) => dense.push(weight),
                Packed::Nf4(weight) => nf4.push(weight),
                Packed::Int8(weight) => int8.push(weight),
                Packed::Blocks(weight) if has_dense => dense.push(weight.dequantize()?),
                Packed::Blocks(weight) => blocks.push(weight),
            }
        }
        Ok(match (nf4.is_empty(), int8.is_empty(), blocks.is_empty()) {
            (false, ..) => Self::Nf4(nf4),
            (_, false, _) => Self::Int8(int8),
            (.., false) => Self::Blocks(blocks),
            (true, true, true) => Self::Dense(join(dense)?),
        })
    }

    /// Returns the same weight for computation in another kind, on another device. A packed weight stays packed.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        Ok(match self {
            Self::Dense(weight) => Self::Dense(weight.f_to_kind(kind)?.f_to_device(device)?),
            Self::Nf4(parts) => Self::Nf4(parts.iter().map(|part| part.to_device(device)).collect::<Result<_, _>>()?),
            Self::Int8(parts) => Self::Int8(parts.iter().map(|part| part.to_device(device)).collect::<Result<_, _>>()?),
            Self::Blocks(parts) => Self::Blocks(parts.clone()),
            Self::Tiled(tiles) => Self::Tiled(tiles.clone()),
        })
    }

    /// Returns whether the weight is a tensor, which needs no unpacking.
    pub(crate) fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Returns the kind in which [`Weight::write_to`] writes, of a weight for computation in `kind`, and the device.
    pub(crate) fn options(&self, kind: Kind) -> (Kind, Device) {
        match self {
            Self::Dense(weight) => (kind, weight.device()),
            Self::Nf4(parts) => (Kind::Float, parts.first().map_or(Device::Cpu, Nf4::device)),
            Self::Int8(parts) => (Kind::Float, parts.first().map_or(Device::Cpu, Int8::device)),
            Self::Blocks(_) | Self::Tiled(_) => HOST,
        }
    }

    /// Returns the weight `[out, in]`, to be dropped after use: a packed weight is unpacked to `Float` here.
    pub(crate) fn whole(&self, kind: Kind) -> Result<Tensor, ModelError> {
        if let Self::Dense(weight) = self {
            return Ok(weight.shallow_clone());
        }
        let (outputs, inputs) = self.size()?;
        let whole = Tensor::f_empty([outputs, inputs], self.options(kind))?; // [out, in]
        self.write_to(&whole)?;
        Ok(whole)
    }

    /// Writes the weight to `whole: [out, in]`, of which the caller has the only handle.
    pub(crate) fn write_to(&self, whole: &Tensor) -> Result<(), ModelError> {
        let mut start = 0;
        let mut next = |rows: i64| {
            start += rows;
            whole.f_narrow(0, start - rows, rows)
        };
        match self {
            Self::Dense(weight) => whole.shallow_clone().f_copy_(weight)?,
            Self::Nf4(parts) => {
                for part in parts {
                    part.dequantize_into(&mut next(part.size().0)?)?;
                }
            }
            Self::Int8(parts) => {
                for part in parts {
                    part.dequantize_into(&mut next(part.size()?.0)?)?;
                }
            }
            Self::Blocks(parts) => {
                for part in parts {
                    part.dequantize_into(&mut next(part.size().0 as i64)?)?;
                }
            }
            Self::Tiled(tiles) => {
                let mut whole = whole.shallow_clone();
                for (output, row) in numbers_mut(&mut whole)?.chunks_exact_mut(tiles.size().1).enumerate() {
                    tiles.unpack_output(output, row);
                }
            }
        }
        Ok(())
    }

    /// Returns the numbers of outputs and inputs.
    fn size(&self) -> Result<(i64, i64), ModelError> {
        let sizes: Vec<(i64, i64)> = match self {
            Self::Dense(weight) => vec![weight.size2()?],
            Self::Nf4(parts) => parts.iter().map(Nf4::size).collect(),
            Self::Int8(parts) => parts.iter().map(Int8::size).collect::<Result<_, _>>()?,
            Self::Blocks(parts) => {
                parts.iter().map(GgufBlocks::size).map(|(outputs, inputs)| (outputs as i64, inputs as i64)).collect()
            }
            Self::Tiled(tiles) => vec![(tiles.size().0 as i64, tiles.size().1 as i64)],
        };
        Ok(sizes.into_iter().fold((0, 0), |(outputs, _), (more, inputs)| (outputs + more, inputs)))
    }

    /// Returns the layout of the codes for serving. `None`: the weight is not quantized, has this layout, or its rows
    /// are not whole blocks.
    pub(crate) fn tiled(&self) -> Result<Option<Self>, ModelError> {
        let tiles = match self {
            Self::Nf4(parts) => tiled::of_nf4(parts),
            Self::Int8(parts) => tiled::of_int8(parts)?,
            Self::Blocks(parts) => tiled::of_blocks(parts),
            Self::Dense(_) | Self::Tiled(_) => None,
        };
        Ok(tiles.map(|tiles| Self::Tiled(Arc::new(tiles))))
    }

    /// Returns the size in memory, in bytes.
    pub(crate) fn bytes(&self) -> Result<usize, ModelError> {
        Ok(match self {
            Self::Dense(weight) => weight.numel() * weight.f_kind()?.elt_size_in_bytes(),
            Self::Nf4(parts) => parts.iter().map(Nf4::bytes).sum(),
            Self::Int8(parts) => parts.iter().map(Int8::bytes).sum(),
            Self::Blocks(parts) => parts.iter().map(GgufBlocks::bytes).sum(),
            Self::Tiled(tiles) => tiles.bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::architecture::gguf_blocks::BlockKind;

    use super::*;
    use crate::quant::gguf::random_blocks;

    #[test]
    fn a_weight_that_is_laid_out_unpacks_to_nearly_the_same_numbers() {
        tch::manual_seed(51);
        let random = |rows| Tensor::randn([rows, 128], HOST);
        let nf4 =
            Weight::Nf4(vec![Nf4::quantize(&random(20), true).unwrap(), Nf4::quantize(&random(9), true).unwrap()]);
        let int8 = Weight::Int8(vec![Int8::quantize(&random(20)).unwrap(), Int8::quantize(&random(9)).unwrap()]);
        for (weight, allowed) in [(nf4, 0.02), (int8, 1e-5)] {
            let tiled = weight.tiled().unwrap().unwrap();
            assert!(tiled.tiled().unwrap().is_none());
            let (got, want) = (tiled.whole(HOST.0).unwrap(), weight.whole(HOST.0).unwrap());
            assert_eq!(got.size(), [29, 128]);
            assert!(got.allclose(&want, 0.0, allowed, false), "{weight:?}");
            // 32 outputs, as a tile has 16.
            let codes = if matches!(weight, Weight::Nf4(_)) { 32 * 64 + 32 * 2 * 4 } else { 32 * 128 + 32 * 4 };
            assert_eq!(tiled.bytes().unwrap(), codes);
        }
        assert!(Weight::Dense(random(4)).tiled().unwrap().is_none());
    }

    #[test]
    fn blocks_of_one_kind_or_of_several_are_laid_out_with_exactly_their_numbers() {
        use BlockKind::{Q4One, Q4Zero, Q8Zero};
        for (kinds, bits) in
            [(vec![Q4Zero; 3], 4.5), (vec![Q4One; 2], 5.0), (vec![Q8Zero], 8.5), (vec![Q4Zero, Q4One, Q8Zero], 9.0)]
        {
            let part = |(at, &kind): (usize, &BlockKind)| random_blocks(kind, (16, 128), at as u64);
            let weight = Weight::Blocks(kinds.iter().enumerate().map(part).collect());
            let tiled = weight.tiled().unwrap().unwrap();
            assert!(tiled.whole(HOST.0).unwrap().equal(&weight.whole(HOST.0).unwrap()), "{kinds:?}");
            let numbers = kinds.len() as f64 * 16.0 * 128.0;
            assert_eq!(tiled.bytes().unwrap() as f64 * 8.0 / numbers, bits, "{kinds:?}");
        }
        assert!(Weight::Blocks(vec![random_blocks(Q4Zero, (4, 96), 1)]).tiled().unwrap().is_none());
    }
}
