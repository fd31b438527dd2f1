//! The rules by which several adapters are merged into one.
//!
//! Source of the names and defaults: `MergedAdapters` in `types.py` of `lorax-client`, and `add_weighted_adapter` of
//! PEFT.

use serde::{Deserialize, Serialize};

/// The strategy of a merge, which is applied to each factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeStrategy {
    /// The weighted sum.
    Linear,
    /// TIES: the largest values of each adapter; of these, at each position, those of the majority's sign. Source:
    /// Yadav et al., arXiv:2306.01708.
    Ties,
    /// DARE: random values of each adapter, rescaled; then the weighted sum. Source: Yu et al., arXiv:2311.03099.
    DareLinear,
    /// DARE's random values, then TIES's choice by sign.
    DareTies,
}

impl MergeStrategy {
    /// All strategies, with their names.
    pub const ALL: [(&str, Self); 4] = [
        ("linear", Self::Linear),
        ("ties", Self::Ties),
        ("dare_linear", Self::DareLinear),
        ("dare_ties", Self::DareTies),
    ];
}

/// The choice of the majority's sign at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of the values.
    Total,
    /// The sign that most values have.
    Frequency,
}

impl MajoritySign {
    /// All choices, with their names.
    pub const ALL: [(&str, Self); 2] = [("total", Self::Total), ("frequency", Self::Frequency)];
}

/// The rule of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MergeRule {
    /// The strategy.
    pub strategy: MergeStrategy,
    /// The fraction of the values of each adapter that is kept, from 0 to 1; above 0 except for
    /// [`MergeStrategy::Linear`], which keeps all values.
    pub density: f64,
    /// The choice of the majority's sign.
    pub majority_sign: MajoritySign,
    /// The seed of the random values that DARE keeps.
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
        for (name, strategy) in MergeStrategy::ALL {
            assert_eq!(serde_json::to_value(strategy).unwrap(), name);
        }
        for (name, method) in MajoritySign::ALL {
            assert_eq!(serde_json::to_value(method).unwrap(), name);
        }
    }
}
