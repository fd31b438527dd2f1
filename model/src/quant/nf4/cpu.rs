//! Packing and unpacking over contiguous memory on the CPU, in as many parallel parts as libtorch has threads: a byte
//! is looked up in a table of 256 pairs.

use super::{BLOCK, Scales};
use crate::{
    kernels::{fused::share, thread_pool::parallel_for},
    quant::nf4_tables::LEVELS,
};

/// The midpoints between neighboring levels.
const MIDPOINTS: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] + LEVELS[i + 1]) / 2.0;
        i += 1;
    }
    middles
};

/// The two numbers of each byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [LEVELS[byte >> 4], LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Returns the codes of `numbers`, two per byte, and the largest absolute value of each block.
pub(super) fn pack(numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; numbers.len().div_ceil(2)];
    let mut absmax = vec![0f32; numbers.len().div_ceil(BLOCK)];
    let share = share(absmax.len(), BLOCK);
    let outs = codes.chunks_mut(share * BLOCK / 2).zip(absmax.chunks_mut(share));
    parallel_for(numbers.chunks(share * BLOCK).zip(outs), |(numbers, (codes, absmax))| {
        pack_blocks(numbers, codes, absmax);
    });
    (codes, absmax)
}

/// Unpacks all codes into `out`.
pub(super) fn unpack(codes: &[u8], scales: &Scales, out: &mut [f32]) {
    let share = share(out.len().div_ceil(BLOCK), BLOCK);
    let parts = out.chunks_mut(share * BLOCK).zip(codes.chunks(share * BLOCK / 2));
    parallel_for(parts.enumerate(), |(part, (out, codes))| unpack_blocks(scales, part * share, codes, out));
}

/// Unpacks whole blocks, starting at block `first`.
fn unpack_blocks(scales: &Scales, first: usize, codes: &[u8], out: &mut [f32]) {
    for (block, (out, codes)) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 2)).enumerate() {
        let scale = scales.get(first + block);
        let (whole, rest) = out.as_chunks_mut::<2>();
        for (pair, &code) in whole.iter_mut().zip(codes) {
            let [high, low] = PAIRS[usize::from(code)];
            *pair = [high * scale, low * scale];
        }
        if let (Some(last), Some(&code)) = (rest.first_mut(), codes.last()) {
            *last = PAIRS[usize::from(code)][0] * scale;
        }
    }
}

/// Packs whole blocks; the last may be short.
fn pack_blocks(numbers: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
    for ((numbers, codes), absmax) in numbers.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(absmax) {
        let largest = numbers.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        let mut levels = [0u8; BLOCK + 1];
        if numbers.len() == BLOCK {
            let inverse = 1.0 / largest.max(1e-38);
            for (level, number) in levels.iter_mut().zip(numbers) {
                *level = nearest_level((number * inverse).clamp(-1.0, 1.0));
            }
            *absmax = largest;
        } else {
            // bitsandbytes divides in a short block and multiplies by the inverse in a whole one; so does this code.
            *absmax = largest.max(1e-38);
            for (level, number) in levels.iter_mut().zip(numbers) {
                *level = nearest_level((number / *absmax).clamp(-1.0, 1.0));
            }
            levels[numbers.len()] = nearest_level(0.0); // padding of an odd count
        }
        for (code, pair) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
            *code = pair[0] << 4 | pair[1];
        }
    }
}

/// Returns the index of the nearest level, of two equally near ones the lower: the number of midpoints below `number`.
fn nearest_level(number: f32) -> u8 {
    MIDPOINTS.iter().map(|&middle| u8::from(middle < number)).sum()
}
