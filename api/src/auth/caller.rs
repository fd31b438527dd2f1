//! The authenticated callers: a user, authenticated by `guard.rs`; a trainer with its run's token; a replica with its
//! own.
//!
//! All send `Authorization: Bearer …`; only the SHA-256 of keys and of runs' tokens is compared or stored.

use attune_domain::{
    access::{Actor, Role},
    id::OrganizationId,
};
use attune_store::{
    error::StoreError,
    exports::export_run::{self, ExportRun},
    replica::{self, Replica},
    runs::run::{self, Run},
    tenancy::api_key::Holder,
};
use axum::{extract::FromRequestParts, http::request::Parts};
use sqlx::PgConnection;
use tracing::{Span, field::display};

use crate::{app::App, auth::bearer::bearer, error::ApiError};

/// A caller with access to a project. All rows that it reads and writes belong to that project.
#[derive(Debug, Clone)]
pub struct Caller(pub Holder);

/// A caller that administers an organization.
#[derive(Debug, Clone, Copy)]
pub struct Administrator {
    /// The caller's identity, as the audit log records it.
    pub actor: Actor,
    /// The organization's ID.
    pub organization_id: OrganizationId,
    /// The caller's role in the organization.
    pub role: Role,
    /// The permission to administer the installation.
    pub administers_installation: bool,
}

/// Returns the caller that the guard stored in the request. The guard stores one in every request that it admits.
fn left<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Result<T, ApiError> {
    parts.extensions.get::<T>().cloned().ok_or_else(|| ApiError::internal("the request was not authenticated"))
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        left(parts)
    }
}

impl FromRequestParts<App> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        left(parts)
    }
}

/// A process on a node, authenticated by the token of its row: a trainer by its run's, a replica by its own.
#[derive(Debug, Clone)]
pub struct TokenHolder<T>(pub T);

/// A row with the token of a process on a node.
pub trait TokenRow: Sized + Send {
    /// The message for a token that no row has.
    const UNKNOWN: &'static str;

    /// Returns the row with this token.
    fn by_token(conn: &mut PgConnection, token: &str) -> impl Future<Output = Result<Self, StoreError>> + Send;

    /// Records the row's ID in a request's span.
    fn record(&self, span: &Span);
}

/// The row whose task a process performs: a trainer authenticates with its token.
#[derive(Debug, Clone)]
pub enum TaskRow {
    /// A run of a job.
    Run(Run),
    /// An attempt at an export.
    Export(ExportRun),
}

impl TokenRow for TaskRow {
    const UNKNOWN: &'static str = "No run has this token.";

    async fn by_token(conn: &mut PgConnection, token: &str) -> Result<Self, StoreError> {
        match run::by_token(conn, token).await {
            Err(StoreError::NotFound(_)) => export_run::by_token(conn, token).await.map(Self::Export),
            found => found.map(Self::Run),
        }
    }

    fn record(&self, span: &Span) {
        if let Self::Run(run) = self {
            span.record("run.id", display(run.run_id));
        }
    }
}

impl TokenRow for Replica {
    const UNKNOWN: &'static str = "No replica has this token.";

    async fn by_token(conn: &mut PgConnection, token: &str) -> Result<Self, StoreError> {
        replica::by_token(conn, token).await
    }

    fn record(&self, span: &Span) {
        span.record("replica.id", display(self.replica_id));
    }
}

impl<T: TokenRow> FromRequestParts<App> for TokenHolder<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)?;
        let mut db = app.platform().await?;
        let row = T::by_token(&mut db, token).await.map_err(|error| match error {
            StoreError::NotFound(_) => ApiError::Unauthenticated(T::UNKNOWN),
            other => other.into(),
        })?;
        row.record(&Span::current());
        Ok(Self(row))
    }
}
