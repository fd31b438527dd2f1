//! The context of the batch workers.

use std::sync::Arc;

use attune_inference::context::Inference;

use crate::{batches::capacity::BatchesAtPools, leader::Leader};

/// The context, which all workers share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    /// The context of the requests.
    pub(crate) inference: Inference,
    /// The leadership of this scheduler, which fences the claims. Everything else that a worker writes requires its
    /// claim.
    pub(crate) leader: Arc<Leader>,
    /// The requests per replica, where deployments do not set them.
    pub(crate) target_concurrency: u32,
    /// The batches that are executed at each pool.
    pub(crate) at_pools: BatchesAtPools,
}

impl Batches {
    /// Creates the context.
    pub(crate) fn new(inference: Inference, leader: Arc<Leader>, target_concurrency: u32) -> Self {
        Self { inference, leader, target_concurrency, at_pools: BatchesAtPools::default() }
    }
}
