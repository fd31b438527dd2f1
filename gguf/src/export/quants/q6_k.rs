//! Blocks of 256 6-bit integers: 16 parts of 16, each with a scale of 8 bits, which have a 16-bit scale. A number is
//! `d · scale · (code − 32)`.

use half::f16;

use super::fit::{nearest, signed};

/// The number of weights in a block.
pub(crate) const BLOCK: usize = 256;

/// The number of weights in a part.
const PART: usize = 16;

/// The number of parts.
const PARTS: usize = BLOCK / PART;

/// Half of the number of codes.
const HALF: f32 = 32.0;

/// The least code of a scale is `-SCALE_HALF`.
const SCALE_HALF: f32 = 128.0;

/// Appends a block of numbers, whose errors have these weights. Returns `None` if the scale is too large for 16 bits.
pub(crate) fn encode(numbers: &[f32], weights: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let mut scales = [0.0; PARTS];
    for (part, (x, w)) in numbers.chunks_exact(PART).zip(weights.chunks_exact(PART)).enumerate() {
        scales[part] = signed(x, w, HALF);
    }
    let peak = scales.iter().fold(0.0_f32, |most, scale| if scale.abs() > most.abs() { *scale } else { most });
    let d = Some(f16::from_f32(-peak / SCALE_HALF)).filter(|d| d.is_finite())?;
    let step = d.to_f32();
    let mut scale_codes = [0_i8; PARTS];
    let mut codes = [HALF as u8; BLOCK];
    if step != 0.0 {
        for (part, (x, q)) in numbers.chunks_exact(PART).zip(codes.chunks_exact_mut(PART)).enumerate() {
            scale_codes[part] = nearest(scales[part] / step).clamp(-SCALE_HALF, SCALE_HALF - 1.0) as i8;
            let scale = step * f32::from(scale_codes[part]);
            if scale != 0.0 {
                for (q, x) in q.iter_mut().zip(x) {
                    *q = (nearest(x / scale).clamp(-HALF, HALF - 1.0) + HALF) as u8;
                }
            }
        }
    }
    for half in codes.chunks_exact(BLOCK / 2) {
        // The low four bits of weights 64 apart share a byte.
        out.extend((0..64).map(|i| half[i] & 15 | (half[i + 64] & 15) << 4));
    }
    for half in codes.chunks_exact(BLOCK / 2) {
        let high = |i: usize| half[i] >> 4;
        out.extend((0..32).map(|i| high(i) | high(i + 32) << 2 | high(i + 64) << 4 | high(i + 96) << 6));
    }
    out.extend(scale_codes.map(i8::cast_unsigned));
    out.extend(d.to_le_bytes());
    Some(())
}
