//! Bounds on the numbers of a `config.json`. Each is far above every published model of the four families, and low
//! enough that no product of them overflows: memory estimates and tensor shapes need no checks of their own.

/// The maximum width of the residual stream. Llama 3.1 405B has 16,384.
pub const MAX_HIDDEN_SIZE: u64 = 1 << 16;

/// The maximum width of the feed-forward block. Llama 3.1 405B has 53,248.
pub const MAX_INTERMEDIATE_SIZE: u64 = 1 << 18;

/// The maximum number of decoder blocks. Llama 3.1 405B has 126.
pub const MAX_LAYERS: u64 = 512;

/// The maximum number of query heads. Llama 3.1 405B has 128.
pub const MAX_HEADS: u64 = 512;

/// The maximum width of a head.
pub const MAX_HEAD_DIM: u64 = 512;

/// The maximum number of rows of the embedding table. Qwen 2.5 has 152,064.
pub const MAX_VOCAB_SIZE: u64 = 1 << 20;

/// The maximum context length, and the maximum sliding window.
pub const MAX_POSITIONS: u64 = 1 << 24;

/// The minimum epsilon of RMSNorm; at 0, the norm of a row of zeros divides by zero.
pub const MIN_RMS_NORM_EPS: f64 = 1e-20;

/// The maximum epsilon of RMSNorm.
pub const MAX_RMS_NORM_EPS: f64 = 0.1;

/// The minimum base of the rotary frequencies.
pub const MIN_ROPE_THETA: f64 = 10.0;

/// The maximum base of the rotary frequencies. Llama 3 with a context of a million tokens has 3.6e9.
pub const MAX_ROPE_THETA: f64 = 1e12;

/// The minimum factor or coefficient of a rope scaling.
pub const MIN_ROPE_FACTOR: f64 = 1e-3;

/// The maximum factor or coefficient of a rope scaling.
pub const MAX_ROPE_FACTOR: f64 = 1e4;
