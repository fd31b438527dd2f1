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
    replica::{self, Replica},
    runs::run::{self, Run},
    tenancy::api_key::Holder,
};
use axum::{extract::FromRequestParts, http::request::Parts};

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

/// A trainer, authenticated by its run's token.
#[derive(Debug, Clone)]
pub struct RunCaller(pub Run);

impl FromRequestParts<App> for RunCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)?;
        let mut db = app.platform().await?;
        let run = run::by_token(&mut db, token).await.map_err(unknown("No run has this token."))?;
        tracing::Span::current().record("run.id", tracing::field::display(run.run_id));
        Ok(Self(run))
    }
}

/// A replica, authenticated by its token.
#[derive(Debug, Clone)]
pub struct ReplicaCaller(pub Replica);

impl FromRequestParts<App> for ReplicaCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)?;
        let mut db = app.platform().await?;
        let replica = replica::by_token(&mut db, token).await.map_err(unknown("No replica has this token."))?;
        tracing::Span::current().record("replica.id", tracing::field::display(replica.replica_id));
        Ok(Self(replica))
    }
}

fn unknown(message: &'static str) -> impl FnOnce(StoreError) -> ApiError {
    move |error| match error {
        StoreError::NotFound(_) => ApiError::Unauthenticated(message),
        other => other.into(),
    }
}
