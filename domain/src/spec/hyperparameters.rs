//! OpenAI's hyperparameters, checked.

use serde::{Deserialize, Serialize};

use super::{
    range::{set_float, set_int},
    request::Hyperparameters,
};
use crate::bad_field::BadField;

/// The learning rate at a multiplier of 1, common for LoRA. Source: Dettmers et al., arXiv:2305.14314, table 9.
pub const BASE_LEARNING_RATE: f64 = 2e-4;

/// The hyperparameters in use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = HyperparametersView))]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct HyperparametersSpec {
    pub n_epochs: u32,
    pub batch_size: u32,
    // The factor by which the learning rate in use differs from `BASE_LEARNING_RATE`; OpenAI's clients read it.
    pub learning_rate_multiplier: f64,
}

/// The form of [`HyperparametersSpec`] in a stored [`TrainSpec`](super::TrainSpec).
#[derive(Serialize, Deserialize)]
#[serde(remote = "HyperparametersSpec")]
pub(super) struct StoredHyperparameters {
    n_epochs: u32,
    #[serde(rename = "effective_batch_size")]
    batch_size: u32,
    learning_rate_multiplier: f64,
}

impl HyperparametersSpec {
    /// Returns the defaults for a training file with `rows` rows. The batch size is about one row in 64, from 4 to 32,
    /// so that a small file still has enough steps to train on.
    pub(super) fn defaults(rows: u64) -> Self {
        let batch_size = (rows / 64).clamp(4, 32).min(rows.max(1)) as u32;
        Self { n_epochs: 3, batch_size, learning_rate_multiplier: 1.0 }
    }

    pub(super) fn set_batch_size(&mut self, asked: &Hyperparameters) -> Result<(), BadField> {
        set_int(&mut self.batch_size, "hyperparameters.batch_size", asked.batch_size.0, 1..=1024)
    }

    pub(super) fn set_epochs(&mut self, asked: &Hyperparameters) -> Result<(), BadField> {
        set_int(&mut self.n_epochs, "hyperparameters.n_epochs", asked.n_epochs.0, 1..=100)
    }

    pub(super) fn set_multiplier(&mut self, asked: &Hyperparameters) -> Result<(), BadField> {
        let (param, given) = ("hyperparameters.learning_rate_multiplier", asked.learning_rate_multiplier.0);
        set_float(&mut self.learning_rate_multiplier, param, given, 1e-4..=1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_has_small_batches() {
        for (rows, batch_size) in [(0, 1), (1, 1), (3, 3), (100, 4), (360, 5), (2048, 32), (1 << 40, 32)] {
            assert_eq!(HyperparametersSpec::defaults(rows).batch_size, batch_size, "{rows} rows");
        }
    }
}
