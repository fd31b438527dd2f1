//! The context of requests of models, which the API and the scheduler build.

use std::{sync::Arc, time::Duration};

use attune_domain::id::ProjectId;
use attune_process::error_chain::chain;
use attune_store::{
    db::{self, Tx},
    error::StoreError,
    files::objects::Objects,
};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::{
    config::{Prices, Serving},
    error::InferenceError,
    metering::Meter,
    pool::{balancer::Balancer, changes::ReplicaChanges, loads::PoolLoads},
    replica_waiters::Waiters,
    shadow::places::ShadowPlaces,
    traffic::TrafficMeter,
};

/// The time limit for a connection to a replica.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval between two writes of what was counted.
const WRITE: Duration = Duration::from_secs(2);

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
    /// The signal that a replica has a new state.
    pub changes: ReplicaChanges,
    /// The requests at each replica.
    pub balancer: Balancer,
    /// The requests of each pool.
    pub loads: PoolLoads,
    /// The prices of answers.
    pub prices: Prices,
    /// The counters of usage.
    pub meter: Arc<Meter>,
    /// The counters of adapter versions.
    pub traffic: Arc<TrafficMeter>,
    /// The places of copies of requests to shadows.
    pub(crate) shadows: ShadowPlaces,
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
            changes: ReplicaChanges::default(),
            balancer: Balancer::default(),
            loads: PoolLoads::default(),
            prices,
            meter: Arc::new(Meter::new(prices)),
            traffic: Arc::default(),
            shadows: ShadowPlaces::default(),
        })
    }

    /// Returns this context with empty counters of its own.
    #[must_use]
    pub fn with_own_meter(&self) -> Self {
        Self { meter: Arc::new(Meter::new(self.prices)), ..self.clone() }
    }

    /// Writes usage and traffic to the database. What could not be written is kept for the next attempt.
    ///
    /// # Errors
    /// [`InferenceError::Busy`], [`InferenceError::Internal`]: the database is unavailable.
    pub async fn write(&self) -> Result<(), InferenceError> {
        let (usage, traffic) = (self.meter.write(&self.db).await, self.traffic.write(&self.db).await);
        usage.and(traffic)
    }

    /// Writes usage and traffic every few seconds, without end.
    pub async fn write_on(self) {
        loop {
            sleep(WRITE).await;
            if let Err(error) = self.write().await {
                tracing::warn!("usage or traffic could not be written; it will be retried: {}", chain(&error));
            }
        }
    }

    /// Receives the changes of replicas and writes the loads of pools, without end.
    pub async fn watch_pools(self) {
        tokio::join!(self.changes.listen_on(self.db.clone()), self.loads.write_on(self.db.clone()));
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
