//! Numbers quantized to 8 bits in blocks.
//!
//! A block of 256 numbers shares a scale, the block's largest absolute value. Each number is the nearest value of a
//! dynamic code: seven decades, with more values in the larger ones.
//!
//! Source: Dettmers et al., arXiv:2110.02861, §2; the codes are those of `create_dynamic_map` in the `functional.py` of
//! bitsandbytes 0.50.2.

use std::sync::LazyLock;

use attune_domain::memory::OPTIMIZER_BLOCK;

use crate::quant::{
    nf4::{midpoints, nearest_code},
    nf4_tables::DYNAMIC,
};

/// The count of numbers that share a scale.
pub(crate) const BLOCK: usize = OPTIMIZER_BLOCK as usize;

/// Numbers quantized to 8 bits in blocks.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<u8>,
    /// The scale of each block: its largest absolute value.
    pub(crate) largest: Vec<f32>,
}

/// An 8-bit code, and the midpoints between neighboring values.
pub(crate) struct Code {
    pub(crate) values: [f32; 256],
    midpoints: [f32; 255],
}

/// The code of the first moment, which has either sign.
pub(crate) static SIGNED: Code = Code { values: DYNAMIC, midpoints: midpoints(&DYNAMIC) };

/// The code of the second moment, which is never negative.
pub(crate) static UNSIGNED: LazyLock<Code> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let count = 2 << decade;
        for i in 0..count {
            let middle = 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(count);
            values.push((middle * 10f64.powi(decade - 6)) as f32);
        }
    }
    values.sort_by(f32::total_cmp);
    let values = std::array::from_fn(|at| values.get(at).copied().unwrap_or(1.0));
    Code { values, midpoints: midpoints(&values) }
});

impl Codes {
    pub(crate) fn zeros(count: usize) -> Self {
        Self { codes: vec![0; count], largest: vec![0.0; count.div_ceil(BLOCK)] }
    }

    /// Returns the size in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.largest.len() * 4
    }

    pub(crate) fn get(&self, code: &Code, at: usize) -> f32 {
        code.values[usize::from(self.codes[at])] * self.largest[at / BLOCK]
    }

    /// Quantizes one whole block.
    pub(crate) fn set(&mut self, code: &Code, block: usize, numbers: &[f32]) {
        let largest = numbers.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        self.largest[block] = largest;
        for (place, &number) in self.codes[block * BLOCK..].iter_mut().zip(numbers) {
            *place = if largest == 0.0 { 0 } else { nearest_code(&code.midpoints, number / largest) };
        }
    }
}
