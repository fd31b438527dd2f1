//! A batch that a worker holds.

use attune_domain::batch::BatchState;
use attune_store::batches::{
    batch::Batch,
    batch_queue::{self, Standing},
};
use uuid::Uuid;

use crate::batches::{context::Batches, error::BatchError};

/// The time without heartbeats after which a worker loses its lease.
pub(crate) const STALE_SECONDS: f64 = 12.0;

/// The batch's state, as of the last heartbeat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The state, and whether the completion window has passed.
    pub(crate) standing: Standing,
    /// True once it is another project's turn.
    pub(crate) turn_is_over: bool,
}

impl Now {
    /// Returns whether the batch was cancelled or its completion window has passed.
    pub(crate) fn ends(self) -> bool {
        self.standing.is_late || self.standing.state == BatchState::Cancelling
    }

    /// Returns whether no further request may begin.
    pub(crate) fn stops(self) -> bool {
        self.turn_is_over || self.ends()
    }
}

/// A batch that a worker holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// The context.
    pub(crate) batches: Batches,
    /// The batch, as it was claimed.
    pub(crate) batch: Batch,
    /// The lease.
    pub(crate) worker: Uuid,
}

impl Held {
    /// Renews the lease, and returns the batch's state.
    ///
    /// # Errors
    /// [`BatchError::Stale`]: another worker holds the batch. [`BatchError::Failed`].
    pub(crate) async fn now(&self) -> Result<Now, BatchError> {
        let mut tx = self.batches.inference.platform().await?;
        let standing = batch_queue::beat(&mut tx, self.batch.batch_id, self.worker).await?;
        let turn_is_over = batch_queue::others_wait(&mut tx, self.batch.project_id, STALE_SECONDS).await?;
        tx.commit().await?;
        Ok(Now { standing, turn_is_over })
    }

    /// Releases the batch, for another worker to claim.
    ///
    /// # Errors
    /// [`BatchError::Failed`].
    pub(crate) async fn give_back(&self) -> Result<(), BatchError> {
        let mut tx = self.batches.inference.platform().await?;
        batch_queue::give_back(&mut tx, self.batch.batch_id, self.worker).await?;
        Ok(tx.commit().await?)
    }
}
