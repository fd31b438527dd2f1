//! Blocks of 32 5-bit integers with a 16-bit scale. A number is `d · (code − 16)`.

use half::f16;

use super::fit::{nearest, signed};

/// The number of weights in a block.
pub(crate) const BLOCK: usize = 32;

/// Half of the number of codes.
const HALF: f32 = 16.0;

/// Appends a block of numbers, whose errors have these weights. Returns `None` if the scale is too large for 16 bits.
pub(crate) fn encode(numbers: &[f32], weights: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let d = Some(f16::from_f32(signed(numbers, weights, HALF))).filter(|d| d.is_finite())?;
    let scale = d.to_f32();
    let mut codes = [HALF as u8; BLOCK];
    if scale != 0.0 {
        for (q, x) in codes.iter_mut().zip(numbers) {
            *q = (nearest(x / scale).clamp(-HALF, HALF - 1.0) + HALF) as u8;
        }
    }
    let high = codes.iter().enumerate().fold(0_u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
    out.extend(d.to_le_bytes());
    out.extend(high.to_le_bytes());
    out.extend((0..BLOCK / 2).map(|i| codes[i] & 15 | (codes[i + BLOCK / 2] & 15) << 4));
    Some(())
}
