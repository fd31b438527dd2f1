//! The state that all handlers share.

use std::sync::Arc;

use attune_domain::id::{OrganizationId, ProjectId};
use attune_inference::context::Inference;
use attune_store::{
    db::{self, Tenant, Tx},
    files::objects::Objects,
};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::credentials::Authenticator,
    config::Limits,
    error::ApiError,
    files::{report_cache::ReportCache, text_places::TextPlaces},
    http::request_context::RequestContext,
    middleware::{conditions::Demands, rate_limiter::RateLimiter},
    places::Places,
    policy::Policies,
    webhooks::Webhooks,
};

/// The shared state of the handlers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// The pool of database connections.
    pub db: PgPool,
    /// The object store.
    pub objects: Objects,
    /// The configured limits.
    pub limits: Arc<Limits>,
    /// The context of requests of models, with the counters of their usage.
    pub inference: Inference,
    /// The slots for checks of base models.
    pub base_imports: Arc<Places>,
    /// The slots for imports of adapters.
    pub adapter_imports: Arc<Places>,
    /// The slots for previews, reports and estimates.
    pub text: Arc<TextPlaces>,
    /// The permits for event streams.
    pub streams: Arc<Semaphore>,
    /// The token that is cancelled when the process begins to shut down: work that would otherwise never end stops
    /// then.
    pub stopping: CancellationToken,
    /// The configuration of webhooks.
    pub webhooks: Arc<Webhooks>,
    /// The policies of all operations; the router sets them.
    pub policies: Arc<Policies>,
    /// The authenticator of bearer tokens.
    pub authenticator: Authenticator,
    /// The rate limits of API keys.
    pub rate_limiter: Arc<RateLimiter>,
    /// The slots for datasets that are parsed concurrently.
    pub parsers: Arc<Places>,
    /// The cache of dataset reports.
    pub reports: Arc<ReportCache>,
}

impl App {
    /// Begins a transaction that sees only this project's rows, in which a user's request runs. The request's
    /// preconditions and its `Idempotency-Key` are checked here, in the transaction that makes its change.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time. [`ApiError::PreconditionFailed`], [`ApiError::Conflict`].
    pub async fn tenant(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::All).await
    }

    /// Begins a transaction before the one that makes the request's change: it checks the preconditions and leaves the
    /// `Idempotency-Key` unmarked, so that a later failure frees the key.
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn preparing(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::Preconditions).await
    }

    /// Begins the transaction that makes the change which [`App::preparing`] prepared: it marks the `Idempotency-Key`.
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn completing(&self, project: ProjectId) -> Result<Tx, ApiError> {
        self.held(Tenant::Project(project), Demands::IdempotencyKey).await
    }

    /// Begins a transaction of this project in addition to the one that makes the request's change: it checks no
    /// precondition and marks no key.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time.
    pub async fn beside(&self, project: ProjectId) -> Result<Tx, ApiError> {
        Ok(db::tenant(&self.db, project).await?)
    }

    /// Begins a transaction that administers an organization: its projects, users, API keys and audit log.
    /// Preconditions and `Idempotency-Key` are checked as in [`App::tenant`].
    ///
    /// # Errors
    /// As [`App::tenant`].
    pub async fn organization(&self, organization: OrganizationId) -> Result<Tx, ApiError> {
        self.held(Tenant::Organization(organization), Demands::All).await
    }

    async fn held(&self, tenant: Tenant, demands: Demands) -> Result<Tx, ApiError> {
        let context = RequestContext::current();
        let mut tx = db::scoped(&self.db, tenant, context.origin()).await?;
        context.check(&mut tx, tenant, demands).await?;
        Ok(tx)
    }

    /// Begins a transaction that sees the rows of all projects: for runs, replicas, batches and the lookup of a key's
    /// owner, never for a response to a user.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: no connection in time.
    pub async fn platform(&self) -> Result<Tx, ApiError> {
        Ok(db::platform(&self.db).await?)
    }
}
