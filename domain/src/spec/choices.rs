//! The trainer's settings that are one of a few names.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// The handling of a row that has more than `max_length` tokens.
#[derive(
    Default,
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The optimizer of the LoRA factors.
#[derive(
    Default,
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Optimizer {
    /// AdamW with `f32` moments.
    #[default]
    Adamw,
    /// AdamW with 8-bit moments, quantized in blocks of 256.
    #[serde(rename = "adamw_8bit")]
    #[strum(serialize = "adamw_8bit")]
    Adamw8bit,
}

/// The learning-rate schedule after the warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray, VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{assert_names_read_back, assert_serialized_by_name};

    #[test]
    fn choices_are_stored_and_requested_by_the_same_names() {
        assert_names_read_back::<OverLength>();
        assert_serialized_by_name::<OverLength>();
        assert_names_read_back::<Optimizer>();
        assert_serialized_by_name::<Optimizer>();
        assert_names_read_back::<Schedule>();
        assert_serialized_by_name::<Schedule>();
    }
}
