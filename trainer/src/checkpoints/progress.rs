//! The progress of a run: the state that decides its next step, in addition to the adapter and the optimizer's moments.
//!
//! Deliberately absent: the position in the row order and the state of a random generator, since both are functions of
//! the seed and the step; and partially accumulated gradients, since a state is saved only between two steps.

use serde::{Deserialize, Serialize};

use crate::{checkpoints::exact::Exact, early_stopping::EarlyStopping, loss_spikes::Spikes};

/// The progress of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The number of completed optimizer steps.
    pub step: u64,
    /// The number of trained tokens so far, each counted as often as it was trained on.
    pub trained_tokens: u64,
    /// The training loss of the last step.
    pub train_loss: Exact,
    /// The last validated step. 0: none.
    pub evaluated_step: u64,
    /// The learning rate that the range test found, if the job requested one.
    pub found_learning_rate: Option<Exact>,
    /// The factor for every learning rate: 1, or ½ after a rollback.
    pub learning_rate_scale: Exact,
    /// The step with a non-finite value, if the run rolled back. A run rolls back only once.
    pub went_back_at: Option<u64>,
    /// The recent training losses, for spike detection.
    pub spikes: Spikes,
    /// The best validation, and the validations since the last improvement.
    pub early_stopping: EarlyStopping,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            step: 0,
            trained_tokens: 0,
            train_loss: Exact(0.0),
            evaluated_step: 0,
            found_learning_rate: None,
            learning_rate_scale: Exact(1.0),
            went_back_at: None,
            spikes: Spikes::default(),
            early_stopping: EarlyStopping::default(),
        }
    }
}
