//! The context that the tasks and the reconciler share.

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
    providers::registry::Providers,
    validations::Validations,
};

/// The shared context, passed to each task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    /// The database pool.
    pub(crate) pool: PgPool,
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
    /// Begins a transaction; the task must not hold a connection already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn begin(&self) -> Result<Tx, SchedulerError> {
        Ok(db::begin(&self.pool).await?)
    }

    /// Acquires a connection for single statements; the task must not hold one already.
    ///
    /// # Errors
    /// [`SchedulerError::Store`].
    pub(crate) async fn single(&self) -> Result<Single, SchedulerError> {
        Ok(db::single(&self.pool).await?)
    }
}

/// Returns the offers of all providers, with what is reserved of them. A provider that does not answer is an error: a
/// job that only its offers can hold must wait, and not be refused.
///
/// # Errors
/// [`SchedulerError::Provider`], [`SchedulerError::Store`].
pub(crate) async fn offers(app: &App, conn: &mut PgConnection) -> Result<Vec<Offer>, SchedulerError> {
    let mut all = Vec::new();
    for provider in app.providers.all() {
        let mut offers = provider.offers().await?;
        let nodes = node::active(conn, provider.name()).await?;
        offers.iter_mut().for_each(|offer| offer::reserve(offer, &nodes));
        all.append(&mut offers);
    }
    Ok(all)
}
