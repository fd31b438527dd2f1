//! The number types of the CPU loops, `f32` and `f64`.

use std::ops::{Add, Div, Mul, Neg, Sub};

use tch::Kind;

/// A number type with a libtorch kind of the same memory layout. `ffi.rs` relies on [`Element::KIND`] when it reads a
/// tensor's memory as numbers of this type.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The libtorch kind.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for i8 {
    const KIND: Kind = Kind::Int8;
}

impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

impl Element for f64 {
    const KIND: Kind = Kind::Double;
}

/// The arithmetic of the fused loops.
pub(crate) trait Real:
    Element
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The number 0.
    const ZERO: Self;
    /// The number 1.
    const ONE: Self;
    /// Rounds `number` to this type.
    fn of(number: f64) -> Self;
    /// Converts to `f64`, without loss.
    fn wide(self) -> f64;
    /// Returns `√x`.
    fn root(self) -> Self;
    /// Returns `eˣ`.
    fn power(self) -> Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn of(number: f64) -> Self {
        number as Self
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    /// Returns `eˣ`, within 2 units in the last place from -87 to 88; outside that range, the value at its nearest end.
    /// NaN stays NaN.
    ///
    /// Source: the range reduction and the polynomial of `expf` in Moshier's Cephes. The exponent is built from the
    /// bits of the rounded quotient, so that the compiler can vectorize over eight numbers.
    #[inline(always)]
    fn power(self) -> Self {
        const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer, in the low bits
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
        let n = shifted - ROUNDER;
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let mut sum = 1.987_569_1e-4;
        for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            sum = sum * r + term;
        }
        let scale = Self::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        (sum * r * r + r + 1.0) * scale
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(number: f64) -> Self {
        number
    }

    fn wide(self) -> f64 {
        self
    }

    fn root(self) -> Self {
        self.sqrt()
    }

    fn power(self) -> Self {
        self.exp()
    }
}
