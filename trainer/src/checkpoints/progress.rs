//! How far a run is: all that decides about its next step, beside the adapter and the optimiser's moments.
//!
//! Deliberately absent: a place in the order of rows and a state of random numbers, since both are functions of the seed
//! and the step; and gradients that are half added up, since a state is only ever taken between two steps.

use serde::{Deserialize, Serialize};

use crate::{checkpoints::exact::Exact, early_stopping::EarlyStopping, loss_spikes::Spikes};

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps that are done.
    pub step: u64,
    /// Tokens with a loss so far, each as often as it was trained on.
    pub trained_tokens: u64,
    /// The last step's loss.
    pub train_loss: Exact,
    /// The last step that was validated; 0: none.
    pub evaluated_step: u64,
    /// The rate that a range test found, if one was asked for.
    pub found_learning_rate: Option<Exact>,
    /// What every learning rate is multiplied by: 1, or ½ after the run went back.
    pub learning_rate_scale: Exact,
    /// The step that was not finite, if the run went back once. It does so no second time.
    pub went_back_at: Option<u64>,
    /// The loss of late, to tell a spike.
    pub spikes: Spikes,
    /// The best validation, and how long ago it is.
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
