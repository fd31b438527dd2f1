//! Blocks of 256 4-bit integers: 8 parts of 32, each with a scale and a minimum of 6 bits, which have 16-bit scales of
//! their own. A number is `d · scale · code − d_min · minimum`.

use half::f16;

use super::fit::{affine, nearest, unsigned};

/// The number of weights in a block.
pub(crate) const BLOCK: usize = 256;

/// The number of weights in a part.
const PART: usize = 32;

/// The number of parts.
const PARTS: usize = BLOCK / PART;

/// The largest code of a weight.
const TOP: f32 = 15.0;

/// The largest code of a scale and of a minimum.
const TOP_SCALE: f32 = 63.0;

/// Appends a block of numbers, whose errors have these weights. Returns `None` if a scale is too large for 16 bits.
pub(crate) fn encode(numbers: &[f32], weights: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let (mut scales, mut minimums, mut sums) = ([0.0; PARTS], [0.0; PARTS], [0.0; PARTS]);
    for (part, (x, w)) in numbers.chunks_exact(PART).zip(weights.chunks_exact(PART)).enumerate() {
        let found = affine(x, w, TOP);
        (scales[part], minimums[part], sums[part]) = (found.scale, found.minimum, w.iter().sum::<f32>());
    }
    let (d, scale_codes) = coded(&scales, &sums)?;
    let (d_min, minimum_codes) = coded(&minimums, &sums)?;
    let mut codes = [0; BLOCK];
    for (part, (x, q)) in numbers.chunks_exact(PART).zip(codes.chunks_exact_mut(PART)).enumerate() {
        let scale = d.to_f32() * f32::from(scale_codes[part]);
        let minimum = d_min.to_f32() * f32::from(minimum_codes[part]);
        if scale > 0.0 {
            for (q, x) in q.iter_mut().zip(x) {
                *q = nearest((x + minimum) / scale).clamp(0.0, TOP) as u8;
            }
        }
    }
    out.extend(d.to_le_bytes());
    out.extend(d_min.to_le_bytes());
    out.extend(packed_scales(&scale_codes, &minimum_codes));
    for pair in codes.chunks_exact(2 * PART) {
        out.extend((0..PART).map(|i| pair[i] | pair[PART + i] << 4));
    }
    Some(())
}

/// Returns the scale of the parts' scales, and their codes.
fn coded(scales: &[f32; PARTS], weights: &[f32; PARTS]) -> Option<(f16, [u8; PARTS])> {
    let d = Some(f16::from_f32(unsigned(scales, weights, TOP_SCALE))).filter(|d| d.is_finite())?;
    let step = d.to_f32();
    if step == 0.0 {
        return Some((d, [0; PARTS]));
    }
    Some((d, scales.map(|scale| nearest(scale / step).clamp(0.0, TOP_SCALE) as u8)))
}

/// Packs the codes of 6 bits: the first four scales and minimums have a byte each, and the high bits of those bytes are
/// the high bits of the last four, whose low bits follow.
fn packed_scales(scales: &[u8; PARTS], minimums: &[u8; PARTS]) -> [u8; 12] {
    let mut packed = [0; 12];
    for i in 0..4 {
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        packed[i + 4] = minimums[i] | (minimums[i + 4] >> 4) << 6;
        packed[i + 8] = scales[i + 4] & 15 | (minimums[i + 4] & 15) << 4;
    }
    packed
}
