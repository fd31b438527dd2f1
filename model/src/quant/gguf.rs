//! Weights in the blocks of a GGUF file, as an import keeps them: Q4_0, Q4_1 and Q8_0, with 32 weights of a row each.
//! The numbers equal those of llama.cpp and candle bit for bit.
//!
//! A block of Q4_0 has a scale `d` and codes from 0 to 15, for the numbers `(code - 8)·d`; one of Q4_1 has a minimum
//! `m` too, for `code·d + m`; one of Q8_0 has codes from -128 to 127, for `code·d`. `d` and `m` are in half precision.
//! The low halves of 16 bytes are the first 16 codes of 4 bits, their high halves the others.
//!
//! Shapes: `out`, `in` widths.
//!
//! Source: `dequantize_row_q4_0`, `dequantize_row_q4_1` and `dequantize_row_q8_0` in ggml's `ggml-quants.c`.

use std::sync::Arc;

use attune_domain::architecture::gguf_blocks::BlockKind;
use half::f16;
use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::{
        ffi::numbers_mut,
        fused::{run, share},
        placement::HOST,
    },
};

/// The number of weights in a block.
pub const WEIGHTS: usize = attune_domain::architecture::gguf_blocks::WEIGHTS as usize;

/// The number that a code of 4 bits of Q4_0 is above.
const MIDDLE: i16 = 8;

/// A frozen weight `[out, in]` in blocks. A clone shares its memory.
#[derive(Debug, Clone)]
pub struct GgufBlocks {
    kind: BlockKind,
    outputs: usize,
    inputs: usize,
    bytes: Arc<[u8]>,
}

impl GgufBlocks {
    /// Takes the blocks of a weight `[out, in]`, row by row.
    ///
    /// # Errors
    /// [`ModelError::Input`]: there are not as many bytes. [`ModelError::NotFinite`] with this name: a scale or a
    /// minimum is NaN or infinite.
    pub fn new(
        name: &str,
        kind: BlockKind,
        (outputs, inputs): (usize, usize),
        bytes: Vec<u8>,
    ) -> Result<Self, ModelError> {
        let row = kind.row_bytes(inputs as u64).and_then(|row| usize::try_from(row).ok());
        if row.and_then(|row| row.checked_mul(outputs)) != Some(bytes.len()) {
            let count = bytes.len();
            return Err(ModelError::Input(format!("{count} bytes are no {kind:?} blocks of [{outputs}, {inputs}]")));
        }
        let blocks = Self { kind, outputs, inputs, bytes: bytes.into() };
        let has_min = kind == BlockKind::Q4One;
        let is_finite = |block: &[u8]| half(block, 0).is_finite() && (!has_min || half(block, 2).is_finite());
        let are_finite = blocks.bytes.chunks_exact(blocks.block_bytes()).all(is_finite);
        if are_finite { Ok(blocks) } else { Err(ModelError::NotFinite(name.to_owned())) }
    }

    /// Returns the kind of the blocks.
    pub(crate) fn kind(&self) -> BlockKind {
        self.kind
    }

    /// Returns `(out, in)`.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// Returns the size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the code of a weight as a number of 8 bits: from 0 to 15 for 4 bits.
    pub(crate) fn code(&self, output: usize, input: usize) -> u8 {
        let (block, at) = (self.block(output, input / WEIGHTS), input % WEIGHTS);
        match self.kind {
            BlockKind::Q8Zero => block[2 + at],
            BlockKind::Q4Zero | BlockKind::Q4One => {
                let byte = block[block.len() - WEIGHTS / 2 + at % (WEIGHTS / 2)];
                if at < WEIGHTS / 2 { byte & 15 } else { byte >> 4 }
            }
        }
    }

    /// Returns the number that a code represents, in multiples of the scale.
    pub(crate) fn level(&self, code: u8) -> i16 {
        match self.kind {
            BlockKind::Q4Zero => i16::from(code) - MIDDLE,
            BlockKind::Q4One => i16::from(code),
            BlockKind::Q8Zero => i16::from(code.cast_signed()),
        }
    }

    /// Returns the scale of a block.
    pub(crate) fn scale(&self, output: usize, block: usize) -> f16 {
        half(self.block(output, block), 0)
    }

    /// Returns the minimum of a block; 0, if its kind has none.
    pub(crate) fn min(&self, output: usize, block: usize) -> f16 {
        if self.kind == BlockKind::Q4One { half(self.block(output, block), 2) } else { f16::ZERO }
    }

    /// Dequantizes to a new `Float` tensor `[out, in]`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn dequantize(&self) -> Result<Tensor, ModelError> {
        let mut out = Tensor::f_empty([self.outputs as i64, self.inputs as i64], HOST)?; // [out, in]
        self.dequantize_into(&mut out)?;
        Ok(out)
    }

    /// Dequantizes into `out: [out, in]`, `Float`, contiguous, on the CPU, of which the caller has the only handle.
    ///
    /// # Errors
    /// [`ModelError::Input`]: any other tensor, or one of another size.
    pub(crate) fn dequantize_into(&self, out: &mut Tensor) -> Result<(), ModelError> {
        if out.size() != [self.outputs as i64, self.inputs as i64] {
            let size = (self.outputs, self.inputs);
            return Err(ModelError::Input(format!("a weight of {size:?} does not fit in {:?}", out.size())));
        }
        let share = share(self.outputs, self.inputs);
        let rows = numbers_mut::<f32>(out)?.chunks_mut(share * self.inputs).enumerate();
        run(
            rows,
            #[inline(always)]
            |(part, rows)| {
                for (row, numbers) in rows.chunks_exact_mut(self.inputs).enumerate() {
                    self.row_into(part * share + row, numbers);
                }
            },
        );
        Ok(())
    }

    /// Dequantizes one output into `row: [in]`.
    pub(crate) fn row_into(&self, output: usize, row: &mut [f32]) {
        let size = self.row_bytes();
        let blocks = self.bytes[output * size..(output + 1) * size].chunks_exact(self.block_bytes());
        for (block, numbers) in blocks.zip(row.as_chunks_mut::<WEIGHTS>().0) {
            let (scale, codes) = (half(block, 0).to_f32(), &block[block.len() - self.code_bytes()..]);
            match self.kind {
                BlockKind::Q8Zero => {
                    for (number, code) in numbers.iter_mut().zip(codes) {
                        *number = f32::from(code.cast_signed()) * scale;
                    }
                }
                BlockKind::Q4Zero => {
                    unpack(codes, numbers, |code| f32::from(i16::from(code) - MIDDLE) * scale);
                }
                BlockKind::Q4One => {
                    let min = half(block, 2).to_f32();
                    unpack(codes, numbers, |code| f32::from(code) * scale + min);
                }
            }
        }
    }

    fn block(&self, output: usize, block: usize) -> &[u8] {
        let start = output * self.row_bytes() + block * self.block_bytes();
        &self.bytes[start..start + self.block_bytes()]
    }

    fn row_bytes(&self) -> usize {
        self.inputs / WEIGHTS * self.block_bytes()
    }

    fn block_bytes(&self) -> usize {
        self.kind.bytes() as usize
    }

    fn code_bytes(&self) -> usize {
        if self.kind == BlockKind::Q8Zero { WEIGHTS } else { WEIGHTS / 2 }
    }
}

/// Unpacks the codes of 4 bits of a block.
#[inline(always)]
fn unpack(codes: &[u8], numbers: &mut [f32; WEIGHTS], number: impl Fn(u8) -> f32) {
    let (first, second) = numbers.split_at_mut(WEIGHTS / 2);
    for ((low, high), &code) in first.iter_mut().zip(second).zip(codes) {
        (*low, *high) = (number(code & 15), number(code >> 4));
    }
}

/// Returns the half-precision number at a byte of a block.
fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Blocks with random codes and scales, for tests.
#[cfg(test)]
pub(crate) fn random_blocks(kind: BlockKind, (outputs, inputs): (usize, usize), seed: u64) -> GgufBlocks {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_pcg::Pcg64::seed_from_u64(seed);
    let size = kind.bytes() as usize;
    let mut bytes: Vec<u8> = (0..outputs * inputs / WEIGHTS * size).map(|_| random.random()).collect();
    let places = if kind == BlockKind::Q4One { 0..4 } else { 0..2 };
    for block in bytes.chunks_exact_mut(size) {
        for at in places.clone().step_by(2) {
            let number = f16::from_f32((random.random::<f32>() - 0.5) * 0.1);
            block[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
    }
    GgufBlocks::new("random", kind, (outputs, inputs), bytes).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ffi::numbers;

    #[test]
    fn the_numbers_of_a_block_are_those_of_its_formula() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let min = f16::from_f32(-3.0).to_le_bytes();
        // The first code is 1 and the seventeenth 15; all others are 0.
        let mut codes = [0u8; 16];
        codes[0] = 0xf1;
        let four = |head: &[u8], kind| {
            let block = GgufBlocks::new("w", kind, (1, 32), [head, &codes].concat()).unwrap();
            Vec::<f32>::try_from(block.dequantize().unwrap().flatten(0, -1)).unwrap()
        };
        let zero = four(&scale, BlockKind::Q4Zero);
        assert_eq!((zero[0], zero[1], zero[16], zero[31]), (-3.5, -4.0, 3.5, -4.0));
        let one = four(&[scale, min].concat(), BlockKind::Q4One);
        assert_eq!((one[0], one[1], one[16], one[31]), (-2.5, -3.0, 4.5, -3.0));
        let mut codes = [0u8; 32];
        (codes[0], codes[31]) = (0x80, 127);
        let eight = GgufBlocks::new("w", BlockKind::Q8Zero, (1, 32), [&scale[..], &codes].concat()).unwrap();
        let eight = Vec::<f32>::try_from(eight.dequantize().unwrap().flatten(0, -1)).unwrap();
        assert_eq!((eight[0], eight[1], eight[31]), (-64.0, 0.0, 63.5));
    }

    #[test]
    fn codes_levels_and_scales_make_up_the_numbers() {
        for kind in BlockKind::ALL {
            let blocks = random_blocks(kind, (37, 96), 5);
            let whole = blocks.dequantize().unwrap();
            for (at, &number) in numbers::<f32>(&whole).unwrap().iter().enumerate() {
                let (output, input) = (at / 96, at % 96);
                let level = f32::from(blocks.level(blocks.code(output, input)));
                let block = input / WEIGHTS;
                let want = level * blocks.scale(output, block).to_f32() + blocks.min(output, block).to_f32();
                assert!(number == want, "{kind:?} {at}: {number} {want}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let blocks = random_blocks(BlockKind::Q4One, (1024, 512), 6);
        let before = tch::get_num_threads();
        let made = [1, 2, 5].map(|threads| {
            tch::set_num_threads(threads);
            blocks.dequantize().unwrap()
        });
        tch::set_num_threads(before);
        assert!(made[1].equal(&made[0]) && made[2].equal(&made[0]));
    }

    #[test]
    fn bytes_that_are_no_blocks_and_scales_that_are_not_finite_are_refused() {
        let new = |size, bytes: Vec<u8>| GgufBlocks::new("w", BlockKind::Q4One, size, bytes);
        assert!(new((1, 32), vec![0; 20]).is_ok());
        for (size, count) in [((1, 32), 19), ((2, 32), 20), ((1, 31), 20), ((1, 0), 0)] {
            assert!(matches!(new(size, vec![0; count]), Err(ModelError::Input(_))), "{size:?}");
        }
        for at in [0, 2] {
            for bad in [f16::NAN, f16::INFINITY] {
                let mut bytes = vec![0; 40];
                bytes[20 + at..22 + at].copy_from_slice(&bad.to_le_bytes());
                assert!(matches!(new((1, 64), bytes), Err(ModelError::NotFinite(name)) if name == "w"));
            }
        }
        let wide = new((1, 64), vec![0; 40]).unwrap();
        assert!(wide.dequantize_into(&mut Tensor::zeros([64, 1], HOST)).is_err());
    }
}
