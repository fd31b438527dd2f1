//! Products of weights in the blocks of a GGUF file, which have scales for halves of a block.

use attune_domain::architecture::gguf_blocks::BlockKind;
use proptest::prelude::*;
use tch::{Device, Kind};

use super::*;
use crate::quant::{
    gguf::{GgufBlocks, random_blocks},
    tiled::of_blocks,
};

/// The kinds of the parts of a weight: one kind, and several, which have codes of 8 bits.
const CASES: [&[BlockKind]; 5] = [
    &[BlockKind::Q4Zero],
    &[BlockKind::Q4One, BlockKind::Q4One],
    &[BlockKind::Q8Zero],
    &[BlockKind::Q4Zero, BlockKind::Q8Zero],
    &[BlockKind::Q8Zero, BlockKind::Q4One, BlockKind::Q4Zero],
];

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn product(instructions: Instructions, tiles: &Tiles, x: &[f32], parts: usize) -> Vec<f32> {
    let rows = quantized(x, tiles.size().1);
    let mut out = vec![f32::NAN; rows.count() * tiles.size().0];
    multiply(instructions, tiles, &rows, &mut out, parts);
    out
}

/// Returns the weights of all parts, dequantized, row by row.
fn dequantized(parts: &[GgufBlocks]) -> Vec<f32> {
    let whole = parts.iter().map(|part| part.dequantize().unwrap());
    whole.flat_map(|part| numbers::<f32>(&part).unwrap().to_vec()).collect()
}

fn random(count: usize, seed: i64) -> Vec<f32> {
    tch::manual_seed(seed);
    Vec::try_from(Tensor::randn([count as i64], (Kind::Float, Device::Cpu))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_kernel_gives_the_same_bits_and_the_product_is_near_that_of_the_dequantized_weight(
        (case, outputs, blocks, rows) in (0..CASES.len(), 1usize..40, 1usize..5, 1usize..20),
        seed in 0u32..1000,
    ) {
        let inputs = blocks * BLOCK;
        let part = |&kind: &BlockKind| random_blocks(kind, (outputs, inputs), seed.into());
        let parts: Vec<GgufBlocks> = CASES[case].iter().map(part).collect();
        let (tiles, weights) = (of_blocks(&parts).unwrap(), dequantized(&parts));
        let outputs = tiles.size().0;
        let x = random(rows * inputs, seed.into());
        let want = product(Instructions::Plain, &tiles, &x, 1);
        for instructions in Instructions::available() {
            for parts in [1, 2, 7] {
                let got = product(instructions, &tiles, &x, parts);
                prop_assert_eq!(bits(&got), bits(&want), "{:?} in {} parts", instructions, parts);
            }
        }
        let alone = product(Instructions::fastest(), &tiles, &x[..inputs], 3);
        prop_assert_eq!(bits(&alone), bits(&want[..outputs]));
        for (at, &got) in want.iter().enumerate() {
            let (x, weights) = (&x[at / outputs * inputs..][..inputs], &weights[at % outputs * inputs..][..inputs]);
            let (mut exact, mut bound) = (0f64, 0f64);
            for (x, weights) in x.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
                // An activation is off by half a step at most, which is the largest of its block / 16382.
                let step = f64::from(x.iter().fold(0f32, |most, x| most.max(x.abs()))) / 16_382.0;
                // A code and its minimum are multiplied apart, and may be larger than their sum.
                let largest = f64::from(weights.iter().fold(0f32, |most, weight| most.max(weight.abs()))) + 0.2;
                for (x, weight) in x.iter().zip(weights) {
                    exact += f64::from(*x) * f64::from(*weight);
                    bound += f64::from(weight.abs()) * step * 1.001 + f64::from(x.abs()) * largest * 16.0 * 1e-6;
                }
            }
            prop_assert!((f64::from(got) - exact).abs() <= bound, "{} {} {}", got, exact, bound);
        }
    }
}

#[test]
fn a_row_with_a_number_that_is_not_finite_gives_nan_with_minima_too() {
    let tiles = of_blocks(&[random_blocks(BlockKind::Q4One, (20, 2 * BLOCK), 3)]).unwrap();
    let mut x = random(3 * 2 * BLOCK, 4);
    let before = product(Instructions::fastest(), &tiles, &x, 1);
    x[2 * BLOCK + 70] = f32::INFINITY;
    for instructions in Instructions::available() {
        let got = product(instructions, &tiles, &x, 1);
        assert!(got[20..40].iter().all(|y| y.is_nan()), "{instructions:?}");
        assert_eq!((&got[..20], &got[40..]), (&before[..20], &before[40..]));
    }
}
