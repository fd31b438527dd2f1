//! Blocks of 32 8-bit integers with a 16-bit scale. Source: `quantize_row_q8_0_ref` in ggml's `ggml-quants.c`.

use half::f16;

/// The number of weights in a block.
pub(crate) const BLOCK: usize = 32;

/// Appends a block, whose largest number is the code 127. Returns `None` if the scale is too large for 16 bits.
pub(crate) fn encode(numbers: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let largest = numbers.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
    let scale = largest / 127.0;
    let half = Some(f16::from_f32(scale)).filter(|half| half.is_finite())?;
    out.extend(half.to_le_bytes());
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(numbers.iter().map(|number| ((number * inverse).round() as i8).cast_unsigned()));
    Some(())
}
