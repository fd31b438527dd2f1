//! Products of activations by a frozen weight, computed from the weight's 4-bit or 8-bit codes: `y = x·Wᵀ + c`.
//!
//! A decoding step reads every weight once, so the memory bandwidth limits it: codes of 4 bits are an eighth of `f32`.
//! The activations become integers of 14 bits with a scale per row and block of 64 inputs, the 16 levels of a 4-bit
//! code integers of 13 bits, and the sum of a block is an integer of 32 bits. So the product differs from that in `f32`
//! by a few ten-thousandths of its size, and this does not depend on the number of rows, on the other rows, on the
//! number of threads, or on the processor: all kernels give the same bits. Prompts and large batches take the same
//! path.
//!
//! Activations of 8 bits would take half as many instructions, which does not matter while memory limits; but their
//! error of about a hundredth shows in the perplexity of a small model.
//!
//! The blocks of a GGUF file have 32 inputs: their scales, and minima, are those of halves of a block of activations.
//! Their codes and scales are exact, so only the activations are rounded.
//!
//! The kernels are chosen by the processor's instructions and, where several can run, by their speed at the first use.
//!
//! Shapes: `t` rows, `in`, `out` widths.
//!
//! Sources: a scale per block of activations, as in llama.cpp's `ggml-quants.c` (`quantize_row_q8_0_ref`, which has
//! blocks of 32 and 8 bits); a weight in tiles of outputs, as in its `ggml-cpu/repack.cpp`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(test)]
mod half_tests;
mod plain;
pub(crate) mod rows;
pub(crate) mod tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vnni;

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use pulp::Arch;
use tch::Tensor;

use self::{
    rows::{BLOCK, Rows, quantize},
    tiles::{LANES, Piece, Scaled, Tiles},
};
#[cfg(target_arch = "x86_64")]
use crate::kernels::ffi::{with_avx2, with_vnni};
use crate::{
    error::ModelError,
    kernels::{
        ffi::{numbers, numbers_mut},
        fused::{run, share},
        placement::HOST,
        thread_pool::{be_patient, parallel_for},
    },
};

/// The parts of a product per thread: more than one, so that a thread that starts late takes fewer.
const PARTS_PER_THREAD: usize = 2;

/// A family of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// The instructions of every processor.
    Plain,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Instructions {
    /// Returns the families that this processor has.
    fn available() -> impl Iterator<Item = Self> {
        let all = [
            #[cfg(target_arch = "x86_64")]
            vnni::is_available().then_some(Self::Vnni),
            #[cfg(target_arch = "x86_64")]
            avx2::is_available().then_some(Self::Avx2),
            Some(Self::Plain),
        ];
        all.into_iter().flatten()
    }

    /// Returns the fastest family, measured once.
    fn fastest() -> Self {
        static FASTEST: OnceLock<Instructions> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            let timed = Self::available().map(|family| (family.time(), family));
            timed.min_by_key(|(time, _)| *time).map_or(Self::Plain, |(_, family)| family)
        })
    }

    /// Returns the shortest of a few times for a small product.
    fn time(self) -> Duration {
        let (outputs, inputs) = (4 * LANES, 8 * BLOCK);
        let tiles = Tiles::new((outputs, inputs), Some([1; 16]), |_, _| 1, (Scaled::Block, |_, _| 1.0));
        let rows = quantized(&vec![1.0; inputs], inputs);
        let times = (0..8).map(|_| {
            let mut out = vec![0f32; outputs];
            let began = Instant::now();
            self.run(Piece::new(&tiles, 0, &rows, vec![&mut out]));
            began.elapsed()
        });
        times.min().unwrap_or(Duration::MAX)
    }

    fn run(self, piece: Piece<'_>) {
        match self {
            Self::Plain => Arch::new().dispatch(|| plain::multiply(piece)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => with_avx2(piece),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => with_vnni(piece),
        }
    }
}

/// Returns `x·wᵀ + bias`: `[t, in]` to `[t, out]`, both `Float` on the CPU.
///
/// # Errors
/// [`ModelError::Width`]: the widths differ. [`ModelError::Input`]: `x` is of another kind or on another device.
pub(crate) fn linear(x: &Tensor, weight: &Tiles, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let (count, width) = x.size2()?;
    let (outputs, inputs) = weight.size();
    if usize::try_from(width) != Ok(inputs) {
        return Err(ModelError::Width { what: "projection", want: inputs as i64, got: width });
    }
    let x = x.f_contiguous()?;
    let rows = quantized(numbers(&x)?, inputs);
    let mut out = Tensor::f_empty([count, outputs as i64], HOST)?; // [t, out]
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    let parts = if threads == 1 { 1 } else { threads * PARTS_PER_THREAD };
    multiply(Instructions::fastest(), weight, &rows, numbers_mut(&mut out)?, parts);
    Ok(match bias {
        Some(bias) => out.f_add_(bias)?,
        None => out,
    })
}

/// Quantizes rows `[t, in]`, in parallel if there are many.
fn quantized(x: &[f32], inputs: usize) -> Rows {
    let count = x.len() / inputs;
    let mut rows = Rows::new(count, inputs);
    let share = share(count, inputs);
    run(
        x.chunks(share * inputs).zip(rows.parts(share)),
        #[inline(always)]
        |(numbers, rows)| quantize(numbers, rows),
    );
    rows
}

/// Writes the product to `out: [t, out]`, in this many parts of some tiles each.
fn multiply(instructions: Instructions, tiles: &Tiles, rows: &Rows, out: &mut [f32], parts: usize) {
    let share = tiles.count().div_ceil(parts.max(1)).max(1);
    let mut columns: Vec<Vec<&mut [f32]>> = Vec::new();
    columns.resize_with(tiles.count().div_ceil(share), || Vec::with_capacity(rows.count()));
    for row in out.chunks_exact_mut(tiles.size().0) {
        for (part, row) in columns.iter_mut().zip(row.chunks_mut(share * LANES)) {
            part.push(row);
        }
    }
    be_patient(true);
    parallel_for(columns.into_iter().enumerate(), |(at, out)| {
        instructions.run(Piece::new(tiles, at * share, rows, out));
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A weight as codes and scales, in plain order, and activations.
    #[derive(Debug)]
    struct Case {
        size: (usize, usize),
        levels: Option<[i16; 16]>,
        codes: Vec<u8>,
        scaled: Scaled,
        scales: Vec<f32>,
        x: Vec<f32>,
    }

    impl Case {
        fn new(size: (usize, usize), rows: usize, four_bits: bool, scaled: Scaled, seed: i64) -> Self {
            tch::manual_seed(seed);
            let cpu = tch::Device::Cpu;
            let random = |count: usize| Vec::<f32>::try_from(Tensor::randn([count as i64], (tch::Kind::Float, cpu)));
            let (outputs, inputs) = size;
            let numbers = random(outputs * inputs).unwrap();
            let code = |number: &f32| {
                if four_bits {
                    (number * 4.0 + 8.0) as u8 & 15
                } else {
                    ((number * 40.0) as i8).max(-127).cast_unsigned()
                }
            };
            Self {
                size,
                levels: four_bits.then(|| std::array::from_fn(|at| (at as i16 - 8) * 511)),
                codes: numbers.iter().map(code).collect(),
                scaled,
                scales: random(outputs * inputs / BLOCK).unwrap(),
                x: random(rows * inputs).unwrap(),
            }
        }

        fn scale(&self, output: usize, input: usize) -> f32 {
            let block = if self.scaled == Scaled::Block { input / BLOCK } else { 0 };
            self.scales[output * (self.size.1 / BLOCK) + block]
        }

        fn weight(&self, output: usize, input: usize) -> f64 {
            let code = self.codes[output * self.size.1 + input];
            let number = self.levels.map_or(code.cast_signed().into(), |levels| levels[usize::from(code)]);
            f64::from(number) * f64::from(self.scale(output, input))
        }

        fn tiles(&self) -> Tiles {
            let scale = |output: usize, block: usize| self.scale(output, block * BLOCK);
            Tiles::new(self.size, self.levels, |at, input| self.codes[at * self.size.1 + input], (self.scaled, scale))
        }

        /// Returns the product in `f64`, of the unpacked weight.
        fn exact(&self, row: usize, output: usize) -> f64 {
            let x = |input: usize| f64::from(self.x[row * self.size.1 + input]);
            (0..self.size.1).map(|input| x(input) * self.weight(output, input)).sum()
        }
    }

    fn product(instructions: Instructions, case: &Case, parts: usize) -> Vec<f32> {
        let rows = quantized(&case.x, case.size.1);
        let mut out = vec![f32::NAN; rows.count() * case.size.0];
        multiply(instructions, &case.tiles(), &rows, &mut out, parts);
        out
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_kernel_gives_the_same_bits_and_the_product_is_near_that_of_the_unpacked_weight(
            (outputs, blocks, rows) in (1usize..70, 1usize..5, 1usize..20),
            (four_bits, by_row, seed) in (any::<bool>(), any::<bool>(), 0i64..1000),
        ) {
            let scaled = if by_row { Scaled::Row } else { Scaled::Block };
            let case = Case::new((outputs, blocks * BLOCK), rows, four_bits, scaled, seed);
            let want = product(Instructions::Plain, &case, 1);
            for instructions in Instructions::available() {
                for parts in [1, 2, 7] {
                    let got = product(instructions, &case, parts);
                    prop_assert_eq!(bits(&got), bits(&want), "{:?} in {} parts", instructions, parts);
                }
            }
            // An activation is off by half a step at most, which is the largest of its block / 16382.
            for (at, got) in want.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let exact = case.exact(row, output);
                let step = |input: usize| {
                    let start = row * case.size.1 + input / BLOCK * BLOCK;
                    f64::from(case.x[start..start + BLOCK].iter().fold(0f32, |most, x| most.max(x.abs()))) / 16_382.0
                };
                let bound: f64 = (0..case.size.1).map(|input| case.weight(output, input).abs() * step(input)).sum();
                // The additions in f32 round too: relative to the sum of the absolute products.
                let rounding: f64 = (0..case.size.1)
                    .map(|input| (case.weight(output, input) * f64::from(case.x[row * case.size.1 + input])).abs())
                    .sum();
                let bound = bound * 1.001 + rounding * 1e-6;
                prop_assert!((f64::from(*got) - exact).abs() <= bound, "{} {} {}", got, exact, bound);
            }
        }

        #[test]
        fn a_row_does_not_depend_on_its_neighbors(rows in 2usize..20, seed in 0i64..1000) {
            let case = Case::new((40, 2 * BLOCK), rows, true, Scaled::Block, seed);
            let together = product(Instructions::fastest(), &case, 2);
            for row in 0..rows {
                let x = case.x[row * 2 * BLOCK..(row + 1) * 2 * BLOCK].to_vec();
                let alone = Case { x, codes: case.codes.clone(), scales: case.scales.clone(), ..case };
                let alone = product(Instructions::fastest(), &alone, 3);
                prop_assert_eq!(bits(&alone), bits(&together[row * 40..(row + 1) * 40]));
            }
        }
    }

    #[test]
    fn a_weight_is_unpacked_to_the_numbers_that_its_products_are_computed_with() {
        for (four_bits, scaled) in [(true, Scaled::Block), (false, Scaled::Row), (false, Scaled::Block)] {
            let case = Case::new((35, 3 * BLOCK), 1, four_bits, scaled, 7);
            let (tiles, mut row) = (case.tiles(), vec![0f32; 3 * BLOCK]);
            for output in 0..35 {
                tiles.unpack_output(output, &mut row);
                for (input, &number) in row.iter().enumerate() {
                    let want = case.weight(output, input);
                    assert!((f64::from(number) - want).abs() <= 1e-6 * want.abs(), "{output} {input}");
                }
            }
        }
    }

    /// An infinite activation must not become a plausible answer.
    #[test]
    fn a_row_with_a_number_that_is_not_finite_gives_nan_and_the_others_do_not_change() {
        let mut case = Case::new((20, 2 * BLOCK), 3, true, Scaled::Block, 3);
        let before = product(Instructions::fastest(), &case, 1);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            case.x[2 * BLOCK + 70] = bad;
            for instructions in Instructions::available() {
                let got = product(instructions, &case, 1);
                assert!(got[20..40].iter().all(|y| y.is_nan()), "{instructions:?} {bad}");
                assert_eq!((&got[..20], &got[40..]), (&before[..20], &before[40..]));
            }
        }
    }

    #[test]
    fn tiny_and_huge_activations_give_no_garbage() {
        let case = Case::new((20, BLOCK), 1, true, Scaled::Block, 9);
        for size in [1e-44f32, 1e-38, 1e-36, 1e-30, 1e30] {
            let x: Vec<f32> = case.x.iter().map(|x| x * size).collect();
            let scaled = Case { x, codes: case.codes.clone(), scales: case.scales.clone(), ..case };
            for (output, got) in product(Instructions::fastest(), &scaled, 1).into_iter().enumerate() {
                let bound = 1e-3 * f64::from(size) * 1e6 + 1e-30;
                assert!((f64::from(got) - scaled.exact(0, output)).abs() <= bound, "{size} {output} {got}");
            }
        }
    }

    #[test]
    fn zeros_and_other_widths() {
        let case = Case { x: vec![0.0; BLOCK], ..Case::new((5, BLOCK), 1, true, Scaled::Block, 1) };
        assert_eq!(product(Instructions::fastest(), &case, 1), [0.0; 5]);
        let narrow = Tensor::zeros([2, BLOCK as i64 - 1], HOST);
        assert!(matches!(linear(&narrow, &case.tiles(), None), Err(ModelError::Width { want: 64, got: 63, .. })));
        let double = Tensor::zeros([2, BLOCK as i64], (tch::Kind::Double, tch::Device::Cpu));
        assert!(matches!(linear(&double, &case.tiles(), None), Err(ModelError::Input(_))));
        let bias = Tensor::ones([5], HOST);
        assert!(
            linear(&double.to_kind(tch::Kind::Float), &case.tiles(), Some(&bias))
                .unwrap()
                .equal(&Tensor::ones([2, 5], HOST))
        );
    }
}
