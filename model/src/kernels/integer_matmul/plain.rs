//! The product in plain loops, for every processor: the weights of a block are unpacked once for all rows. The other
//! kernels give the same numbers, bit for bit: the sums of a block are integers, and the blocks are added in the same
//! order without fused operations.

use super::{
    rows::{BLOCK, WORDS},
    tiles::{Chunk, LANES, Piece},
};

/// The weights of a block of inputs of a tile.
type Weights = [[i16; LANES]; BLOCK];

/// Computes the columns of a piece.
#[inline(always)]
pub(super) fn multiply(mut piece: Piece<'_>) {
    let (tiles, rows) = (piece.tiles, piece.rows);
    let parts = tiles.parts_of_a_block();
    let mut sums = vec![[0f32; LANES]; rows.count()]; // [t, LANES]
    for at in 0..piece.tile_count() {
        let tile = tiles.tile(piece.first + at);
        let per_block = tile.codes.len() / tiles.blocks();
        sums.fill([0.0; LANES]);
        for (block, codes) in tile.codes.chunks_exact(per_block).enumerate() {
            let weights = unpacked(codes, tiles.levels());
            for (part, weights) in weights.chunks_exact(BLOCK / parts).enumerate() {
                let (scales, mins) = tile.scales.of(block * parts + part);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let row = rows.row(row);
                    let (size, of_row) = (WORDS / parts, row.scales[block]);
                    let dots = products(weights, &row.words[block][part * size..(part + 1) * size]);
                    for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(scales) {
                        *sum += dot as f32 * (scale * of_row);
                    }
                    for (sum, min) in sums.iter_mut().zip(mins.iter().flatten()) {
                        *sum += row.sums[block][part] * (min * of_row);
                    }
                }
            }
        }
        piece.put(at, 0, &sums);
    }
}

/// Unpacks the weights of a block.
#[inline(always)]
fn unpacked(codes: &[Chunk], levels: Option<[i16; 16]>) -> Weights {
    let mut weights = [[0; LANES]; BLOCK];
    match levels {
        None => {
            for (Chunk(bytes), inputs) in codes.iter().zip(weights.as_chunks_mut::<4>().0) {
                for (place, &byte) in bytes.iter().enumerate() {
                    inputs[place % 4][place / 4] = byte.cast_signed().into();
                }
            }
        }
        Some(levels) => {
            for (Chunk(bytes), inputs) in codes.iter().zip(weights.as_chunks_mut::<8>().0) {
                for (place, &byte) in bytes.iter().enumerate() {
                    inputs[place % 4][place / 4] = levels[usize::from(byte & 15)];
                    inputs[4 + place % 4][place / 4] = levels[usize::from(byte >> 4)];
                }
            }
        }
    }
    weights
}

/// Returns the sum of the products of a block, or of a half of one, for each output.
#[inline(always)]
fn products(weights: &[[i16; LANES]], words: &[i32]) -> [i32; LANES] {
    let mut dots = [0i32; LANES];
    for (weights, [first, second]) in weights.as_chunks::<4>().0.iter().zip(words.as_chunks::<2>().0) {
        let numbers = [first << 16 >> 16, second << 16 >> 16, first >> 16, second >> 16];
        for (weights, number) in weights.iter().zip(numbers) {
            for (dot, &weight) in dots.iter_mut().zip(weights) {
                *dot += number * i32::from(weight);
            }
        }
    }
    dots
}
