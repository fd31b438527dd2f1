//! The hyper-parameters of AdamW.

/// AdamW's hyper-parameters, constant over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the divisor, so that the division stays finite.
    pub epsilon: f64,
    /// Decoupled decay of the weights.
    pub weight_decay: f64,
    /// The rate of `b` and of magnitudes over that of `a`.
    pub loraplus_lr_ratio: f64,
    /// Moments in 8 bits.
    pub eight_bit: bool,
}

impl Default for AdamWOptions {
    /// Returns PyTorch's defaults, but for `weight_decay`, which is 0 as in transformers' `TrainingArguments`.
    fn default() -> Self {
        let (loraplus_lr_ratio, eight_bit) = (1.0, false);
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, loraplus_lr_ratio, eight_bit }
    }
}
