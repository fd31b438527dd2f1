//! Values with an error band.

/// A value with an error band.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// The lower bound; smaller values are rare.
    pub low: f64,
    /// The most likely value.
    pub likely: f64,
    /// The upper bound; larger values are rare.
    pub high: f64,
}

impl Band {
    /// Returns the band multiplied by `factor`, with `fixed` added.
    #[must_use]
    pub fn scaled(self, factor: f64, fixed: f64) -> Self {
        let of = |value: f64| value * factor + fixed;
        Self { low: of(self.low), likely: of(self.likely), high: of(self.high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaled_band_has_the_fixed_part_in_each_value() {
        let band = Band { low: 1.0, likely: 2.0, high: 4.0 }.scaled(10.0, 1.0);
        assert_eq!(band, Band { low: 11.0, likely: 21.0, high: 41.0 });
    }
}
