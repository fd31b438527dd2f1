//! AdamW, its moments, gradients and learning rate schedules.

pub mod gradients; //      gradients of an adapter
pub(crate) mod moments; //            the optimiser's state
pub mod optimizer; //      AdamW
pub mod options; // its hyper-parameters
pub mod schedule; //       the learning rate over a run
