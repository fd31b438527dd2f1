//! The trainer's settings that are one of a few names.

use serde::{Deserialize, Serialize};

/// The handling of a row that has more than `max_length` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLength {
    /// The job fails, and its error names the row's line.
    #[default]
    Error,
    /// The row is cut to its first `max_length` tokens.
    Truncate,
    /// The row is skipped.
    Drop,
    /// The row is split into several rows of at most `max_length` tokens, which do not attend to each other.
    Split,
}

impl OverLength {
    /// Returns the name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Truncate => "truncate",
            Self::Drop => "drop",
            Self::Split => "split",
        }
    }
}

/// The optimizer of the LoRA factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// AdamW with `f32` moments.
    #[default]
    Adamw,
    /// AdamW with 8-bit moments, quantized in blocks of 256.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The learning rate is constant.
    Constant,
    /// Linear decay to zero.
    Linear,
    /// Half-cosine decay to zero.
    Cosine,
    /// Half-cosine decay to zero, restarted at the peak `num_cycles` times in total.
    CosineWithRestarts,
}

impl Schedule {
    /// Returns the schedule with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "constant" => Self::Constant,
            "linear" => Self::Linear,
            "cosine" => Self::Cosine,
            "cosine_with_restarts" => Self::CosineWithRestarts,
            _ => return None,
        })
    }
}
