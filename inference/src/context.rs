//! The context of requests of models, which the API and the scheduler build.

use std::{sync::Arc, time::Duration};

use attune_domain::id::ProjectId;
use attune_store::{
    db::{self, Tx},
    error::StoreError,
    files::objects::Objects,
};
use sqlx::PgPool;

use crate::{
    config::{Prices, Serving},
    metering::Meter,
    replica_waiters::Waiters,
};

/// The time limit for a connection to a replica.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The shared context. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inference {
    /// The pool of database connections.
    pub db: PgPool,
    /// The object store.
    pub objects: Objects,
    /// The HTTP client for requests to replicas.
    pub http: reqwest::Client,
    /// The configuration.
    pub serving: Serving,
    /// The requests that wait for replicas.
    pub waiters: Waiters,
    /// The prices of answers.
    pub prices: Prices,
    /// The counters of usage.
    pub meter: Arc<Meter>,
}

impl Inference {
    /// Creates a context whose counters are empty.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(db: PgPool, objects: Objects, serving: Serving, prices: Prices) -> reqwest::Result<Self> {
        Ok(Self {
            db,
            objects,
            http: reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build()?,
            serving,
            waiters: Waiters::default(),
            prices,
            meter: Arc::new(Meter::new(prices)),
        })
    }

    /// Returns this context with empty counters of its own.
    #[must_use]
    pub fn with_own_meter(&self) -> Self {
        Self { meter: Arc::new(Meter::new(self.prices)), ..self.clone() }
    }

    /// Begins a transaction that sees only this project's rows.
    ///
    /// # Errors
    /// [`StoreError::Database`]: no connection in time.
    pub async fn tenant(&self, project: ProjectId) -> Result<Tx, StoreError> {
        db::tenant(&self.db, project).await
    }

    /// Begins a transaction that sees the rows of all projects, for replicas and batches.
    ///
    /// # Errors
    /// [`StoreError::Database`]: no connection in time.
    pub async fn platform(&self) -> Result<Tx, StoreError> {
        db::platform(&self.db).await
    }
}
