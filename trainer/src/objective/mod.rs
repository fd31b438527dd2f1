//! Training objectives: the sequences and token weights that a row adds to a micro-batch, and the metrics of its loss.
//!
//! The gradient of every objective is `-Σ wₜ ∇log pₜ` over the tokens of its sequences. `attune_model` computes it for
//! any weights `wₜ`; an objective chooses them.

use attune_domain::spec::Method;

use self::{cpt::Cpt, interface::Objective, sft::Sft};

/// Continued pretraining.
mod cpt;
/// The interface of an objective.
pub mod interface;
/// Supervised fine-tuning.
mod sft;

/// Returns the objective of a method.
pub(crate) fn of(method: Method) -> &'static dyn Objective {
    match method {
        Method::Supervised => &Sft,
        Method::ContinuedPretraining => &Cpt,
    }
}
