//! What every handler has at hand.

use std::sync::Arc;

use attune_domain::id::{OrganizationId, ProjectId};
use attune_store::{
    db::{self, Tenant, Tx},
    files::objects::Objects,
};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{credentials::Authenticator, permissions::Permissions},
    config::{Limits, Prices, Serving},
    error::ApiError,
    files::{report_cache::ReportCache, text_places::TextPlaces},
    http::request_context,
    inference::{metering::Meter, places::Places, replica_waiters::Waiters},
    middleware::{
        preconditions::{self, Demands},
        rate_limiter::RateLimiter,
    },
    webhooks::Webhooks,
};

/// The parts of the platform that a handler reaches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// Rows.
    pub db: PgPool,
    /// Content.
    pub objects: Objects,
    /// For requests to replicas.
    pub http: reqwest::Client,
    /// How much is taken.
    pub limits: Arc<Limits>,
    /// Chat.
    pub serving: Arc<Serving>,
    /// The requests that wait for replicas.
    pub waiters: Waiters,
    /// What trained tokens cost.
    pub prices: Prices,
    /// Counts what answers use.
    pub meter: Arc<Meter>,
    /// Places for the checks of base models.
    pub base_imports: Arc<Places>,
    /// Places for imports of adapters.
    pub adapter_imports: Arc<Places>,
    /// Places for previews, reports and estimates.
    pub text: Arc<TextPlaces>,
    /// Places for streams of events.
    pub streams: Arc<Semaphore>,
    /// Cancelled when the process is asked to stop: what would go on for ever ends then.
    pub stopping: CancellationToken,
    /// Where users want to be told of events.
    pub webhooks: Arc<Webhooks>,
    /// Who may call what; the router fills it in.
    pub permissions: Arc<Permissions>,
    /// The keys and people behind bearer tokens.
    pub authenticator: Authenticator,
    /// The rate limits of keys.
    pub rate_limiter: Arc<RateLimiter>,
    /// Datasets that may be read at the same time.
    pub parsers: Arc<Semaphore>,
    /// The last reports on datasets.
    pub reports: Arc<ReportCache>,
}

impl App {
    /// A transaction in which only this project's rows are there: what every request of a user runs in. What the request
    /// demands of the state it meets is checked here, in the transaction that makes its change.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time. [`ApiError::PreconditionFailed`], [`ApiError::Conflict`].
    pub async fn tenant(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::All).await
    }

    /// A transaction before the one that makes the request's change: checks the preconditions, and leaves the
    /// `Idempotency-Key` unmarked, so that a failure later on frees it.
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn preparing(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::Preconditions).await
    }

    /// The transaction that makes the change which [`App::preparing`] has prepared: marks the `Idempotency-Key`.
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn completing(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::IdempotencyKey).await
    }

    /// A transaction of this project beside the one that makes the request's change: it demands nothing.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time.
    pub async fn beside(&self, project: ProjectId) -> Result<Tx, ApiError> {
        Ok(db::tenant(&self.db, project).await?)
    }

    /// A transaction that administers an organization: its projects, people, keys and audit log. Checked as above.
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn organization(&self, organization: OrganizationId) -> Result<Tx, ApiError> {
        self.held(Tenant::Organization(organization), Demands::All).await
    }

    async fn held(&self, tenant: Tenant, demands: Demands) -> Result<Tx, ApiError> {
        let mut tx = db::scoped(&self.db, tenant, request_context::origin()).await?;
        preconditions::hold(&mut tx, tenant, demands).await?;
        Ok(tx)
    }

    /// A transaction that sees every project's rows: for runs, replicas and the search for a key's holder, never for an
    /// answer to a user.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time.
    pub async fn platform(&self) -> Result<Tx, ApiError> {
        Ok(db::platform(&self.db).await?)
    }
}
