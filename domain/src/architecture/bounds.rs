//! Bounds on the numbers of a `config.json`. Each lies far above every published model of the four families, and low
//! enough that no product of them overflows: memory arithmetic and tensor shapes need no check of their own.

/// The widest residual stream. Llama 3.1 405B has 16,384.
pub const MAX_HIDDEN_SIZE: u64 = 1 << 16;

/// The widest feed-forward block. Llama 3.1 405B has 53,248.
pub const MAX_INTERMEDIATE_SIZE: u64 = 1 << 18;

/// The most decoder blocks. Llama 3.1 405B has 126.
pub const MAX_LAYERS: u64 = 512;

/// The most query heads. Llama 3.1 405B has 128.
pub const MAX_HEADS: u64 = 512;

/// The widest head.
pub const MAX_HEAD_DIM: u64 = 512;

/// The most rows of the embedding table. Qwen 2.5 has 152,064.
pub const MAX_VOCAB_SIZE: u64 = 1 << 20;

/// The longest context, and the widest sliding window.
pub const MAX_POSITIONS: u64 = 1 << 24;

/// The smallest number inside RMSNorm's root; at 0 a row of zeros has no norm.
pub const MIN_RMS_NORM_EPS: f64 = 1e-20;

/// The largest number inside RMSNorm's root.
pub const MAX_RMS_NORM_EPS: f64 = 0.1;

/// The smallest base of the rotary frequencies.
pub const MIN_ROPE_THETA: f64 = 10.0;

/// The largest base of the rotary frequencies. Llama 3 with a context of a million tokens has 3.6e9.
pub const MAX_ROPE_THETA: f64 = 1e12;

/// The smallest factor or coefficient of a rope scaling.
pub const MIN_ROPE_FACTOR: f64 = 1e-3;

/// The largest factor or coefficient of a rope scaling.
pub const MAX_ROPE_FACTOR: f64 = 1e4;
