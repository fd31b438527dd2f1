//! Who calls: a program with an API key, a trainer with its run's token, or a replica with its own.
//!
//! All three come as `Authorization: Bearer …`; only the SHA-256 of the first two is ever compared or stored.

use attune_store::{
    api_key::{self, Holder},
    error::StoreError,
    mint,
    replica::{self, Replica},
    run::{self, Run},
};
use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use crate::{app::App, error::ApiError};

/// A program that showed a good API key. All that it reads and writes is its project's.
#[derive(Debug, Clone)]
pub struct Caller(pub Holder);

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let secret = bearer(parts)?;
        let mut db = app.platform().await?;
        let holder = api_key::by_hash(&mut db, &mint::hash(secret))
            .await?
            .ok_or(ApiError::Unauthenticated("Incorrect API key provided: it is unknown or was revoked."))?;
        api_key::touch(&mut db, holder.api_key_id).await?;
        db.commit().await?;
        tracing::Span::current().record("project.id", tracing::field::display(holder.project_id));
        Ok(Self(holder))
    }
}

/// A trainer that showed its run's token.
#[derive(Debug, Clone)]
pub struct RunCaller(pub Run);

impl FromRequestParts<App> for RunCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(parts)?;
        let mut db = app.platform().await?;
        let run = run::by_token(&mut db, token).await.map_err(unknown("No run has this token."))?;
        tracing::Span::current().record("run.id", tracing::field::display(run.run_id));
        Ok(Self(run))
    }
}

/// A replica that showed its token.
#[derive(Debug, Clone)]
pub struct ReplicaCaller(pub Replica);

impl FromRequestParts<App> for ReplicaCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(parts)?;
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

fn bearer(parts: &Parts) -> Result<&str, ApiError> {
    const MISSING: ApiError = ApiError::Unauthenticated(
        "You didn't provide an API key: send it in the Authorization header, as 'Authorization: Bearer YOUR_KEY'.",
    );
    let value = parts.headers.get(header::AUTHORIZATION).ok_or(MISSING)?;
    let (scheme, secret) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(MISSING)?;
    let secret = secret.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() { Ok(secret) } else { Err(MISSING) }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn read(value: Option<&str>) -> Option<String> {
        let request = value.into_iter().fold(Request::builder(), |r, v| r.header(header::AUTHORIZATION, v));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        bearer(&parts).ok().map(str::to_owned)
    }

    #[test]
    fn a_bearer_is_read_whatever_the_case_of_its_scheme() {
        assert_eq!(read(Some("Bearer sk-attune-x")).as_deref(), Some("sk-attune-x"));
        assert_eq!(read(Some("bearer  sk-attune-x ")).as_deref(), Some("sk-attune-x"));
        for bad in [None, Some("sk-attune-x"), Some("Basic abc"), Some("Bearer "), Some("")] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
