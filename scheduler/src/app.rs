//! What every task and the reconciler share.

use std::sync::Arc;

use attune_domain::offer::Offer;
use attune_store::{
    db::{self, Single, Tx},
    files::objects::Objects,
    runs::{node, offer},
};
use sqlx::{PgConnection, PgPool};
use tokio::sync::{Mutex, Notify};

use crate::{
    config::{Leases, Serving},
    error::SchedulerError,
    liveness::ApiProbe,
    providers::provider::Provider,
    validations::Validations,
};

/// Handed to each task; cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    /// The rows.
    pub(crate) pool: PgPool,
    /// The objects.
    pub(crate) objects: Objects,
    /// Whether reports can be taken.
    pub(crate) api: ApiProbe,
    /// Where processes run.
    pub(crate) provider: Arc<dyn Provider>,
    /// When a run or a replica is given up.
    pub(crate) leases: Leases,
    /// Replicas.
    pub(crate) serving: Serving,
    /// Folder for what validation fetches.
    pub(crate) cache_dir: Arc<std::path::Path>,
    /// Held from before a node is reserved until its launch has answered, and by each pass of the reconciler: a row
    /// without a process is then really one that has lost it.
    pub(crate) placing: Arc<Mutex<()>>,
    /// Of which projects a job's files are checked.
    pub(crate) validations: Validations,
    /// Rung when the reconciler has something to look at.
    pub(crate) wake: Arc<Notify>,
}

impl App {
    /// A transaction; the task must not hold a connection already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn begin(&self) -> Result<Tx, SchedulerError> {
        Ok(db::begin(&self.pool).await?)
    }

    /// A connection for single statements; the task must not hold one already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn single(&self) -> Result<Single, SchedulerError> {
        Ok(db::single(&self.pool).await?)
    }
}

/// The provider's offers, with what is reserved of them.
///
/// # Errors
/// [`SchedulerError::Provider`], [`SchedulerError::Store`].
pub(crate) async fn offers(app: &App, conn: &mut PgConnection) -> Result<Vec<Offer>, SchedulerError> {
    let mut offers = app.provider.offers().await?;
    let nodes = node::active(conn, app.provider.name()).await?;
    offers.iter_mut().for_each(|offer| offer::reserve(offer, &nodes));
    Ok(offers)
}
