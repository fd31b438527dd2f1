//! `Idempotency-Key`: a request that creates something may be repeated, and is executed once.
//!
//! The first request claims the key and runs in a task of its own, so that a caller that disconnects does not interrupt
//! it. Its response is stored for 24 hours. A repetition that arrives before it is stored is refused with
//! `Retry-After`; a later one gets the stored response. A request that failed frees its key. The transaction of the
//! change records that the change was made ([`crate::middleware::conditions`]), so a crash in between leads to the
//! error that the response is lost, never to a second change.
//!
//! A response that contains a secret is stored encrypted under the bearer token of the request, of which the database
//! has only a hash: the same caller can read it by repeating the request, and a copy of the database does not reveal
//! it.

use std::time::Duration;

use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    db::{self, Tenant},
    error::StoreError,
    idempotency::{self, Answer, Claim, Found, HELD_SECONDS},
    webhooks::seal::{LEAST_KEY_CHARACTERS, SealKey},
};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use secrecy::SecretString;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    app::App,
    auth::{
        bearer::bearer,
        caller::{Administrator, Caller},
    },
    error::ApiError,
    http::request_context,
    middleware::fingerprint::Print,
    policy::Policy,
};

/// The request header with the key.
pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The response header that marks a stored response.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The maximum length of a key, in bytes.
const KEY_BYTES: usize = 255;

/// The maximum length of a stored response, in bytes; no response of a request that creates something comes near it.
const ANSWER_BYTES: usize = 4 << 20;

/// The `Retry-After` for a repetition of a request that is still running, in seconds.
const COME_BACK: u64 = 1;

/// The time for which the rest of a repeated upload is read, so that its sender gets to read the response.
const DRAIN: Duration = Duration::from_secs(60);

/// Answers a repeated request with the response to the first one; passes all others on.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    // The other methods in use are idempotent.
    let key = (request.method() == Method::POST).then(|| request.headers().get(KEY).cloned()).flatten();
    let Some(key) = key else { return next.run(request).await };
    match take(&app, &key, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn take(app: &App, key: &HeaderValue, request: Request, next: Next) -> Result<Response, ApiError> {
    let tenant = asker(&request)?;
    let key = check(key, request.extensions().get())?;
    let seal = sealing(&request)?;
    let (request, print) = printed(app, request).await?;
    let asked = format!("{} {}", request.method(), request.uri());
    let mut tx = db::scoped(&app.db, tenant, None).await?;
    let found = idempotency::claim(&mut tx, tenant, key, &asked).await?;
    tx.commit_at(FailPoint::IdempotencyClaim).await?;
    match found {
        Found::Free(claim) => {
            let first = First { pool: app.db.clone(), claim, print, seal };
            let first = first.go_on(request, next).instrument(tracing::Span::current());
            request_context::spawn(first).await.map_err(ApiError::internal)
        }
        Found::Held => Err(ApiError::IdempotencyKeyHeld { retry_after_seconds: COME_BACK }),
        Found::Lost => Err(ApiError::IdempotencyAnswerLost),
        Found::Other(first) => Err(ApiError::IdempotencyKeyReused(format!("it was {first}"))),
        Found::Answered { claim, body_sha256, mut answer } => {
            drain(request).await;
            if print.digest() != body_sha256 {
                return Err(ApiError::IdempotencyKeyReused("its body was different".into()));
            }
            if let Some(seal) = seal {
                answer.body = seal.open(claim, &answer.body).map_err(|_| ApiError::IdempotencyAnswerSealed)?;
            }
            Ok(again(answer))
        }
    }
}

/// Returns the tenant that the key belongs to: that of the caller, as the guard stored it.
fn asker(request: &Request) -> Result<Tenant, ApiError> {
    let extensions = request.extensions();
    let project = extensions.get::<Caller>().map(|caller| Tenant::Project(caller.0.project_id));
    let organization = extensions.get::<Administrator>().map(|who| Tenant::Organization(who.organization_id));
    project.or(organization).ok_or_else(|| not_supported("it requires no authentication".into()))
}

fn not_supported(why: String) -> ApiError {
    let message = format!("Idempotency-Key is not supported for this request: {why}. Omit it.");
    ApiError::Invalid { param: Some(KEY.to_string()), code: "idempotency_not_supported", message }
}

/// Returns the key under which the response is encrypted, if it contains a secret.
fn sealing(request: &Request) -> Result<Option<SealKey>, ApiError> {
    let holds_secret = request.extensions().get::<Policy>().is_some_and(|policy| policy.holds_secret);
    if !holds_secret {
        return Ok(None);
    }
    let bearer = SecretString::from(bearer(request.headers())?);
    SealKey::new(&bearer).map(Some).map_err(|_| {
        not_supported(format!(
            "its response contains a secret, which is stored encrypted under your API key, and a key with \
             fewer than {LEAST_KEY_CHARACTERS} characters is too short for that"
        ))
    })
}

fn check<'a>(key: &'a HeaderValue, policy: Option<&Policy>) -> Result<&'a str, ApiError> {
    if policy.is_some_and(|policy| policy.is_never_stored) {
        return Err(not_supported("completions are not stored".into()));
    }
    let plain = |text: &&str| (1..=KEY_BYTES).contains(&text.len());
    key.to_str().ok().filter(plain).ok_or_else(|| {
        let message = format!("Invalid Idempotency-Key: it must have 1 to {KEY_BYTES} visible ASCII characters.");
        ApiError::Invalid { param: Some(KEY.to_string()), code: "invalid_idempotency_key", message }
    })
}

/// Returns the request with the digest of its body: a form's is computed while it streams, any other's is complete.
async fn printed(app: &App, request: Request) -> Result<(Request, Print), ApiError> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if let Some(print) = Print::of_form(kind) {
        let body = print.watch(body);
        return Ok((Request::from_parts(parts, body), print));
    }
    let limit = app.limits.json_bytes;
    let too_large = |_| ApiError::TooLarge { what: "request body", limit };
    let bytes: Bytes = to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX)).await.map_err(too_large)?;
    let print = Print::whole(Sha256::digest(&bytes).to_vec());
    Ok((Request::from_parts(parts, Body::from(bytes)), print))
}

/// The first request with a key.
struct First {
    pool: PgPool,
    claim: Claim,
    print: Print,
    seal: Option<SealKey>,
}

impl First {
    /// Runs the request to its end.
    async fn go_on(self, mut request: Request, next: Next) -> Response {
        let renewing = AbortOnDropHandle::new(tokio::spawn(renew(self.pool.clone(), self.claim.clone())));
        request.extensions_mut().insert(self.claim.clone());
        let response = next.run(request).await;
        drop(renewing);
        let (parts, body) = response.into_parts();
        let body = match to_bytes(body, ANSWER_BYTES).await {
            Ok(body) => body,
            Err(error) => return ApiError::internal(error).into_response(),
        };
        if let Err(error) = self.settle(&parts, &body).await {
            tracing::warn!(error = chain(&error), "the answer to an Idempotency-Key could not be stored");
        }
        Response::from_parts(parts, Body::from(body))
    }

    /// Stores the response of a request that succeeded, and frees the key of one that failed and changed nothing. A
    /// failure after the change was made is not stored: the key then reports that the change was made and the response
    /// is lost.
    async fn settle(&self, parts: &Parts, body: &[u8]) -> Result<(), StoreError> {
        let mut tx = db::scoped(&self.pool, self.claim.tenant, None).await?;
        if !parts.status.is_success() {
            idempotency::release(&mut tx, &self.claim).await?;
        } else {
            let body = match &self.seal {
                Some(seal) => seal.seal(self.claim.claim, body)?,
                None => body.to_vec(),
            };
            let answer = Answer { status: parts.status.as_u16(), headers: kept(&parts.headers), body };
            idempotency::answer(&mut tx, &self.claim, &self.print.digest(), &answer).await?;
        }
        tx.commit_at(FailPoint::IdempotencySettle).await
    }
}

async fn renew(pool: PgPool, claim: Claim) {
    loop {
        tokio::time::sleep(Duration::from_secs(HELD_SECONDS.unsigned_abs().into()) / 3).await;
        let renewed = async {
            let mut tx = db::scoped(&pool, claim.tenant, None).await?;
            idempotency::renew(&mut tx, &claim).await?;
            tx.commit().await
        };
        if let Err(error) = renewed.await {
            tracing::warn!(error = chain(&error), "an Idempotency-Key could not be renewed");
        }
    }
}

/// Returns the headers that belong to the body; the middleware sets all others again.
fn kept(headers: &HeaderMap) -> Value {
    let of_the_body = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];
    let text = |name: &HeaderName| Some((name.to_string(), headers.get(name)?.to_str().ok()?.into()));
    Value::Object(of_the_body.iter().filter_map(text).collect::<Map<String, Value>>())
}

/// Returns a stored response.
fn again(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, Body::from(answer.body)).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    for (name, value) in answer.headers.as_object().into_iter().flatten() {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_str(value.as_str().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Reads the rest of a repeated request's body, for its digest.
async fn drain(request: Request) {
    let mut pieces = request.into_body().into_data_stream();
    let all = async { while let Some(Ok(_)) = pieces.next().await {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::debug!("a repeated request's body was incomplete");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_and_plain_and_not_for_every_path() {
        let (stored, passing) = (Policy::open("create_file"), Policy::open("create_completion").never_stored());
        let check = |key: &str, policy: &Policy| {
            check(&HeaderValue::from_bytes(key.as_bytes()).unwrap(), Some(policy)).map(drop)
        };
        check("a-key", &stored).unwrap();
        for (key, policy) in [("", &stored), ("ä", &stored), (&"k".repeat(256), &stored), ("k", &passing)] {
            assert!(check(key, policy).is_err(), "{key} {policy:?}");
        }
    }

    #[test]
    fn an_answer_with_a_secret_is_sealed_under_a_key_that_can_seal() {
        let request = |policy: Policy, key: &str| {
            let bearer = format!("Bearer {key}");
            Request::post("/").header(header::AUTHORIZATION, bearer).extension(policy).body(Body::empty()).unwrap()
        };
        let (plain, secret) = (Policy::organization("create_user"), Policy::organization("create_key").holds_secret());
        let long = "k".repeat(LEAST_KEY_CHARACTERS);
        assert!(sealing(&request(plain, "short")).unwrap().is_none());
        assert!(sealing(&request(secret, "short")).is_err());
        assert!(sealing(&request(secret, &long)).unwrap().is_some());
    }

    #[test]
    fn a_kept_answer_comes_back_as_it_was_and_says_so() {
        let first = (StatusCode::CREATED, axum::Json(serde_json::json!({"id": "x"}))).into_response();
        let headers = kept(first.headers());
        let response = again(Answer { status: 201, headers, body: b"{\"id\":\"x\"}".to_vec() });
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[REPLAYED], "true");
    }
}
