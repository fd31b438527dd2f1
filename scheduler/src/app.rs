//! The context that the tasks and the reconciler share.

use std::sync::Arc;

use attune_process::error_chain::chain;
use attune_store::{
    db::{self, Single, Tx},
    files::objects::Objects,
};
use sqlx::PgPool;
use tokio::sync::{Mutex, Notify};

use crate::{
    config::{Leases, Serving},
    error::SchedulerError,
    leader::Leader,
    liveness::ApiProbe,
    providers::{market::Market, registry::Providers},
    validations::Validations,
};

/// The shared context, passed to each task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    /// The database pool.
    pub(crate) pool: PgPool,
    /// The leadership of this scheduler.
    pub(crate) leader: Arc<Leader>,
    /// The object store.
    pub(crate) objects: Objects,
    /// The probe of the API's health.
    pub(crate) api: ApiProbe,
    /// The providers that run trainers and replicas.
    pub(crate) providers: Providers,
    /// Heartbeat interval, timeout and attempt limit of runs and replicas.
    pub(crate) leases: Leases,
    /// Settings for replicas.
    pub(crate) serving: Serving,
    /// The folder in which validation caches base models' text files.
    pub(crate) text_dir: Arc<std::path::Path>,
    /// Placement lock. Held from before a node is reserved until its launch has returned, and by each pass of the
    /// reconciler: a row without a process has therefore really lost it.
    pub(crate) placing: Arc<Mutex<()>>,
    /// The projects whose files are being validated.
    pub(crate) validations: Validations,
    /// Notified when the reconciler has work.
    pub(crate) wake: Arc<Notify>,
}

impl App {
    /// Begins a transaction of the leader; the task must not hold a connection already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`], among them that another scheduler leads.
    pub(crate) async fn begin(&self) -> Result<Tx, SchedulerError> {
        Ok(self.leader.begin(&self.pool).await?)
    }

    /// Acquires a connection for statements that start, stop, end and queue nothing; the task must not hold one
    /// already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn single(&self) -> Result<Single, SchedulerError> {
        Ok(db::single(&self.pool).await?)
    }

    /// Queries all providers for their offers, at the present prices of the catalogue; the task must not hold a
    /// connection already. If the catalogue cannot be read, it stays as last read.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn market(&self) -> Result<Market, SchedulerError> {
        let refreshed = self.providers.catalogue().refresh(&mut *self.single().await?).await;
        if let Err(error) = refreshed {
            tracing::error!(error = chain(&error), "the catalogue cannot be read; its last prices stay");
        }
        Ok(self.providers.market().await)
    }
}
