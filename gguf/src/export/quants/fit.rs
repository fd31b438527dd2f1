//! Scales by weighted least squares.

/// The differences of the tried spans from the span of the codes, in tenths of a code.
const TENTHS: [i8; 19] = [-9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// A number whose addition rounds one of a magnitude below 2²² to an integer: `1.5 · 2²³`.
const ROUND: f32 = 12_582_912.0;

/// Rounds to the nearest integer, ties to even.
pub(crate) fn nearest(number: f32) -> f32 {
    (number + ROUND) - ROUND
}

/// A scale and the amount that is subtracted: a number is about `scale · code − minimum`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Affine {
    pub(crate) scale: f32,
    /// At least 0.
    pub(crate) minimum: f32,
}

/// The sums that decide the best scale for given codes.
#[derive(Default)]
struct Sums {
    w: f32,
    wq: f32,
    wqq: f32,
    wx: f32,
    wxq: f32,
}

impl Sums {
    fn of(numbers: &[f32], weights: &[f32], code: impl Fn(f32) -> f32) -> Self {
        let mut sums = Self::default();
        for (x, w) in numbers.iter().zip(weights) {
            let q = code(*x);
            sums.w += w;
            sums.wq += w * q;
            sums.wqq += w * q * q;
            sums.wx += w * x;
            sums.wxq += w * x * q;
        }
        sums
    }

    /// Returns the best scale and minimum, and by how much they reduce `Σ w x²`.
    fn affine(&self) -> Option<(Affine, f32)> {
        let determinant = self.w * self.wqq - self.wq * self.wq;
        if determinant > 0.0 {
            let scale = (self.w * self.wxq - self.wx * self.wq) / determinant;
            let offset = (self.wqq * self.wx - self.wq * self.wxq) / determinant;
            if scale > 0.0 && offset <= 0.0 {
                return Some((Affine { scale, minimum: -offset }, scale * self.wxq + offset * self.wx));
            }
        }
        self.linear().filter(|(scale, _)| *scale > 0.0).map(|(scale, gain)| (Affine { scale, minimum: 0.0 }, gain))
    }

    /// Returns the best scale without a minimum, and by how much it reduces `Σ w x²`.
    fn linear(&self) -> Option<(f32, f32)> {
        (self.wqq > 0.0).then(|| (self.wxq / self.wqq, self.wxq * self.wxq / self.wqq))
    }
}

/// Returns the scale and the minimum for codes from 0 to `top`.
pub(crate) fn affine(numbers: &[f32], weights: &[f32], top: f32) -> Affine {
    let low = numbers.iter().fold(0.0_f32, |least, x| least.min(*x));
    let high = numbers.iter().fold(f32::MIN, |most, x| most.max(*x));
    let range = high - low;
    // A subnormal range has no finite inverse.
    if range < f32::MIN_POSITIVE * top * 2.0 {
        return Affine { scale: 0.0, minimum: -low };
    }
    let mut best = (Affine { scale: range / top, minimum: -low }, f32::MIN);
    for tenths in TENTHS {
        let inverse = (top + f32::from(tenths) / 10.0) / range;
        let rounded = Sums::of(numbers, weights, |x| nearest((x - low) * inverse).clamp(0.0, top));
        let Some(first) = rounded.affine() else { continue };
        // The codes are rounded once more with the scale that fits them.
        let Affine { scale, minimum } = first.0;
        let again = Sums::of(numbers, weights, |x| nearest((x + minimum) / scale).clamp(0.0, top));
        for found in [Some(first), again.affine()].into_iter().flatten() {
            if found.1 > best.1 {
                best = found;
            }
        }
    }
    best.0
}

/// Returns the scale for codes from `-half` to `half − 1`.
pub(crate) fn signed(numbers: &[f32], weights: &[f32], half: f32) -> f32 {
    let peak = numbers.iter().fold(0.0_f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    if peak.abs() < f32::MIN_POSITIVE * half * 2.0 {
        return 0.0;
    }
    let mut best = (-peak / half, f32::MIN);
    for tenths in TENTHS {
        let inverse = -(half + f32::from(tenths) / 10.0) / peak;
        let sums = Sums::of(numbers, weights, |x| nearest(x * inverse).clamp(-half, half - 1.0));
        if let Some(found) = sums.linear().filter(|(_, gain)| *gain > best.1) {
            best = found;
        }
    }
    best.0
}

/// Returns the scale of numbers of at least 0, for codes from 0 to `top`.
pub(crate) fn unsigned(numbers: &[f32], weights: &[f32], top: f32) -> f32 {
    let peak = numbers.iter().fold(0.0_f32, |most, x| most.max(*x));
    if peak < f32::MIN_POSITIVE * top * 2.0 {
        return 0.0;
    }
    let mut best = (peak / top, f32::MIN);
    for tenths in TENTHS {
        let inverse = (top + f32::from(tenths) / 10.0) / peak;
        let sums = Sums::of(numbers, weights, |x| nearest(x * inverse).clamp(0.0, top));
        if let Some(found) = sums.linear().filter(|(_, gain)| *gain > best.1) {
            best = found;
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_a_grid_have_its_scale_and_minimum() {
        let numbers: Vec<f32> = (0_u8..16).map(|q| f32::from(q) * 0.25 - 1.5).collect();
        let found = affine(&numbers, &[1.0; 16], 15.0);
        assert!((found.scale - 0.25).abs() < 1e-6 && (found.minimum - 1.5).abs() < 1e-6, "{found:?}");
        let numbers: Vec<f32> = (-32_i8..32).map(|q| f32::from(q) * -0.5).collect();
        assert!((signed(&numbers, &[1.0; 64], 32.0) + 0.5).abs() < 1e-6);
        let numbers: Vec<f32> = (0_u8..64).map(|q| f32::from(q) * 3.0).collect();
        assert!((unsigned(&numbers, &[1.0; 64], 63.0) - 3.0).abs() < 1e-5);
    }

    #[test]
    fn equal_numbers_and_zeros_are_exact() {
        assert_eq!(affine(&[0.0; 32], &[1.0; 32], 15.0), Affine::default());
        assert_eq!(affine(&[-2.0; 32], &[1.0; 32], 15.0).minimum, 2.0);
        assert_eq!((signed(&[0.0; 16], &[1.0; 16], 32.0), unsigned(&[0.0; 8], &[1.0; 8], 63.0)), (0.0, 0.0));
    }

    #[test]
    fn the_heaviest_number_is_the_most_exact() {
        let numbers: Vec<f32> = (0_u8..32).map(|i| (f32::from(i) * 0.7).sin()).collect();
        let apart = |weights: &[f32]| {
            let Affine { scale, minimum } = affine(&numbers, weights, 15.0);
            let code = nearest((numbers[5] + minimum) / scale).clamp(0.0, 15.0);
            (scale * code - minimum - numbers[5]).abs()
        };
        let mut heavy = [1.0; 32];
        heavy[5] = 1e4;
        assert!(apart(&heavy) < apart(&[1.0; 32]) && apart(&heavy) < 1e-3);
    }

    #[test]
    fn a_tie_is_rounded_to_even() {
        assert_eq!([0.5, 1.5, -2.5, 2.4, -0.6].map(nearest), [0.0, 2.0, -2.0, 2.0, -1.0]);
    }
}
