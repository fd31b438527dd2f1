//! OpenAI's hyperparameters, in requests and in responses.

use attune_domain::spec::TrainSpec;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auto::{AutoFloat, AutoInt};

/// OpenAI's hyperparameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// The number of epochs over the training rows. `auto` is 3.
    pub n_epochs: AutoInt,
    /// The number of rows per optimizer step. `auto` is about 1/64 of the rows, from 4 to 32.
    pub batch_size: AutoInt,
    /// The learning rate as a multiple of 2e-4. `auto` is 1.
    pub learning_rate_multiplier: AutoFloat,
}

/// The hyperparameters in use.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's names")]
pub struct HyperparametersView {
    pub n_epochs: u32,
    pub batch_size: u32,
    pub learning_rate_multiplier: f64,
}

impl From<&TrainSpec> for HyperparametersView {
    fn from(spec: &TrainSpec) -> Self {
        Self {
            n_epochs: spec.n_epochs,
            batch_size: spec.effective_batch_size,
            learning_rate_multiplier: spec.learning_rate_multiplier,
        }
    }
}
