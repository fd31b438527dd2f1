//! The hyper-parameters of AdamW.

/// AdamW's hyper-parameters, constant over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Term added to the denominator for numerical stability.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// LoRA+: the ratio of the learning rate of `b` and of DoRA magnitudes to that of `a`.
    pub loraplus_lr_ratio: f64,
    /// Flag to keep the moments in 8 bits.
    pub eight_bit: bool,
}

impl Default for AdamWOptions {
    /// Returns PyTorch's defaults, but for `weight_decay`, which is 0 as in transformers' `TrainingArguments`.
    fn default() -> Self {
        let (loraplus_lr_ratio, eight_bit) = (1.0, false);
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, loraplus_lr_ratio, eight_bit }
    }
}
