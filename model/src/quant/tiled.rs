//! Quantized weights in the layout of the kernels that compute from codes ([`Tiles`]), and matrices with a row per
//! token in 8 bits.
//!
//! The codes and the scales are those of the quantized weight. Of NF4, only the 16 levels are rounded, to multiples of
//! 1/4095 of a block's largest value. Of GGUF's blocks, nothing is.

use attune_domain::{architecture::gguf_blocks::BlockKind, memory::SERVED_BLOCK};
use tch::{Device, Tensor};

use super::{
    gguf::{self, GgufBlocks},
    int8::Int8,
    nf4::{self, Nf4},
    nf4_tables::LEVELS,
};
use crate::{
    error::ModelError,
    kernels::{
        ffi::numbers,
        integer_matmul::{
            rows::{BLOCK, LARGEST_LEVEL},
            tiles::{OfHalf, Scaled, Tiles},
        },
    },
};

/// The largest 8-bit number.
const LARGEST: f32 = 127.0;

const _: () = assert!(nf4::BLOCK == BLOCK, "a block of a weight is one of the activations");
const _: () = assert!(2 * gguf::WEIGHTS == BLOCK, "a block of GGUF is a half of one of the activations");
const _: () = assert!(SERVED_BLOCK == BLOCK as u64, "the estimate has the scales of these blocks");

/// Lays out NF4 weights with the same inputs, their outputs concatenated. `None`: a row is not whole blocks, or the
/// weights are not on the CPU.
pub(crate) fn of_nf4(parts: &[Nf4]) -> Option<Tiles> {
    let inputs = usize::try_from(parts.first()?.size().1).ok()?;
    if !Tiles::fits(inputs) || parts.iter().any(|part| part.device() != Device::Cpu) {
        return None;
    }
    let outputs = outputs(parts.iter().map(|part| part.size().0));
    let codes: Vec<&[u8]> = parts.iter().map(Nf4::packed_codes).collect();
    let scales: Vec<Vec<f32>> = parts.iter().map(Nf4::all_scales).collect();
    Some(Tiles::new(
        (outputs.len(), inputs),
        Some(LEVELS.map(|level| (level * f32::from(LARGEST_LEVEL)).round() as i16)),
        |output, input| {
            let (part, row) = outputs[output];
            nf4::code(codes[part], row * inputs + input)
        },
        (Scaled::Block, |output: usize, block: usize| {
            let (part, row) = outputs[output];
            scales[part][row * (inputs / BLOCK) + block] / f32::from(LARGEST_LEVEL)
        }),
    ))
}

/// Lays out int8 weights as [`of_nf4`] does.
///
/// # Errors
/// [`ModelError::Torch`].
pub(crate) fn of_int8(parts: &[Int8]) -> Result<Option<Tiles>, ModelError> {
    let Some(first) = parts.first() else { return Ok(None) };
    let inputs = usize::try_from(first.tensors().0.size2()?.1).unwrap_or(0);
    if !Tiles::fits(inputs) || first.tensors().0.device() != Device::Cpu {
        return Ok(None);
    }
    let mut rows = Vec::with_capacity(parts.len());
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for (part_codes, part_scales) in parts.iter().map(Int8::tensors) {
        rows.push(part_codes.size2()?.0);
        codes.push(numbers::<i8>(part_codes)?);
        scales.push(numbers::<f32>(part_scales)?);
    }
    let outputs = outputs(rows.into_iter());
    Ok(Some(Tiles::new(
        (outputs.len(), inputs),
        None,
        |output, input| {
            let (part, row) = outputs[output];
            codes[part][row * inputs + input].cast_unsigned()
        },
        (Scaled::Row, |output: usize, _| {
            let (part, row) = outputs[output];
            scales[part][row] / LARGEST
        }),
    )))
}

/// Lays out weights in GGUF's blocks as [`of_nf4`] does. Weights of several kinds have codes of 8 bits. `None`: a row
/// is not whole blocks.
pub(crate) fn of_blocks(parts: &[GgufBlocks]) -> Option<Tiles> {
    let first = parts.first()?;
    let inputs = first.size().1;
    if !Tiles::fits(inputs) {
        return None;
    }
    let kind = Some(first.kind()).filter(|kind| parts.iter().all(|part| part.kind() == *kind));
    let levels: Option<[i16; 16]> = match kind {
        Some(BlockKind::Q4Zero | BlockKind::Q4One) => Some(std::array::from_fn(|code| first.level(code as u8))),
        Some(BlockKind::Q8Zero) | None => None,
    };
    let outputs = outputs(parts.iter().map(|part| part.size().0 as i64));
    let code = |output: usize, input: usize| {
        let (part, row) = outputs[output];
        let code = parts[part].code(row, input);
        // Without levels, the codes are the numbers, which are in 8 bits.
        if levels.is_some() { code } else { parts[part].level(code).to_le_bytes()[0] }
    };
    let scale: OfHalf<'_> = &|output, block| {
        let (part, row) = outputs[output];
        parts[part].scale(row, block).to_bits()
    };
    let min: OfHalf<'_> = &|output, block| {
        let (part, row) = outputs[output];
        parts[part].min(row, block).to_bits()
    };
    let min = parts.iter().any(|part| part.kind() == BlockKind::Q4One).then_some(min);
    Some(Tiles::with_halves((outputs.len(), inputs), levels, code, (scale, min)))
}

/// Quantizes `matrix: [out, in]`, `Float` on the CPU, to 8 bits with a scale per block. `None`: a row is not whole
/// blocks.
///
/// # Errors
/// [`ModelError::Input`]: `matrix` is of another kind or on another device. [`ModelError::Torch`].
pub(crate) fn of_dense(matrix: &Tensor) -> Result<Option<Tiles>, ModelError> {
    let (count, width) = matrix.size2()?;
    let (count, width) = (usize::try_from(count).unwrap_or(0), usize::try_from(width).unwrap_or(0));
    if !Tiles::fits(width) {
        return Ok(None);
    }
    let matrix = matrix.f_contiguous()?;
    let all = numbers::<f32>(&matrix)?;
    let largest: Vec<f32> =
        all.chunks(BLOCK).map(|block| block.iter().fold(0f32, |largest, number| largest.max(number.abs()))).collect();
    let code = |output: usize, input: usize| {
        let at = output * width + input;
        let scale = largest[at / BLOCK];
        if scale == 0.0 { 0 } else { ((all[at] / scale * LARGEST).round() as i8).cast_unsigned() }
    };
    let scale = |output: usize, block: usize| largest[output * (width / BLOCK) + block] / LARGEST;
    Ok(Some(Tiles::new((count, width), None, code, (Scaled::Block, scale))))
}

/// Returns the part and the row in it of each output.
fn outputs(rows: impl Iterator<Item = i64>) -> Vec<(usize, usize)> {
    let count = |rows: i64| usize::try_from(rows).unwrap_or(0);
    rows.enumerate().flat_map(|(part, rows)| (0..count(rows)).map(move |row| (part, row))).collect()
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Compares the unpacked tiles with the weight, in units of the largest number of a block.
    fn worst(tiles: &Tiles, weight: &Tensor) -> f64 {
        let (outputs, inputs) = tiles.size();
        let mut worst: f64 = 0.0;
        for output in 0..outputs {
            let mut row = vec![0f32; inputs];
            tiles.unpack_output(output, &mut row);
            let want = Vec::<f32>::try_from(weight.get(output as i64)).unwrap();
            for (row, want) in row.chunks(BLOCK).zip(want.chunks(BLOCK)) {
                let largest = want.iter().fold(1e-30f32, |largest, number| largest.max(number.abs()));
                let apart = row.iter().zip(want).map(|(a, b)| f64::from((a - b).abs() / largest));
                worst = apart.fold(worst, f64::max);
            }
        }
        worst
    }

    #[test]
    fn nf4_keeps_its_codes_and_scales() {
        tch::manual_seed(21);
        for double_quant in [false, true] {
            let made = |rows| Nf4::quantize(&Tensor::randn([rows, 192], CPU), double_quant).unwrap();
            let parts = [made(40), made(7), made(1)];
            let whole: Vec<Tensor> = parts.iter().map(|part| part.dequantize().unwrap()).collect();
            let worst = worst(&of_nf4(&parts).unwrap(), &Tensor::cat(&whole, 0));
            assert!(worst < 0.5 / 4095.0 + 1e-6, "{worst}");
        }
        let narrow = Nf4::quantize(&Tensor::randn([4, 96], CPU), true).unwrap();
        assert!(of_nf4(&[narrow]).is_none());
    }

    #[test]
    fn int8_keeps_its_numbers() {
        tch::manual_seed(22);
        let made = |rows| Int8::quantize(&Tensor::randn([rows, 128], CPU)).unwrap();
        let parts = [made(33), made(5)];
        let whole: Vec<Tensor> = parts.iter().map(|part| part.dequantize().unwrap()).collect();
        let worst = worst(&of_int8(&parts).unwrap().unwrap(), &Tensor::cat(&whole, 0));
        assert!(worst < 1e-6, "{worst}");
        assert!(of_int8(&[Int8::quantize(&Tensor::randn([4, 65], CPU)).unwrap()]).unwrap().is_none());
    }

    #[test]
    fn a_dense_matrix_is_off_by_half_a_step_at_most_and_a_quarter_as_large() {
        tch::manual_seed(23);
        let matrix = Tensor::randn([48, 256], CPU);
        let _ = matrix.get(3).fill_(0.0);
        let tiles = of_dense(&matrix).unwrap().unwrap();
        assert!(worst(&tiles, &matrix) < 0.5 / 127.0 + 1e-6);
        assert_eq!(tiles.bytes(), 48 * 256 + 48 * 256 / BLOCK * 4);
        assert!(of_dense(&Tensor::randn([4, 65], CPU)).unwrap().is_none());
    }
}
