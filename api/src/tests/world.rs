//! The router over a database with two organizations, and callers of every kind.

use std::sync::Arc;

use attune_domain::{
    access::{Role, Scope},
    id::{OrganizationId, ProjectId},
};
use attune_inference::{
    config::{Prices, Serving},
    context::Inference,
};
use attune_store::{
    config::WebhooksConfig,
    db::{self, Tenant},
    files::objects::Objects,
    ids,
    tenancy::{
        api_key::{self, NewKey},
        member, tenant,
    },
    testing::{self, Seed, seed},
};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::issuer::{Issuer, Signer};
use crate::{
    app::App,
    auth::{credentials::Authenticator, issuers::Issuers},
    config::{Cors, Limits, RateLimits},
    middleware::rate_limiter::RateLimiter,
    places::Places,
    router,
    webhooks::Webhooks,
};

/// The router, and everything around it that the tests use.
pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) router: Router,
    pub(crate) objects: Objects,
    pub(crate) inference: Inference,
    pub(crate) issuer: Issuer,
    /// The first organization's project `default`, with a base model and a file.
    pub(crate) seed: Seed,
    /// The first organization.
    pub(crate) organization: OrganizationId,
    /// A key of `default` with the scopes `all` and `admin`.
    pub(crate) key: String,
    /// The second organization's one project, and a key of it with the same scopes.
    pub(crate) other: Other,
}

pub(crate) struct Other {
    pub(crate) project: ProjectId,
    pub(crate) key: String,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl World {
    pub(crate) async fn new(pool: PgPool) -> Self {
        Self::with_objects(pool, testing::unreachable_objects()).await
    }

    pub(crate) async fn with_objects(pool: PgPool, objects: Objects) -> Self {
        Self::build(pool, objects, Signer::ed25519("first"), &["EdDSA"]).await
    }

    pub(crate) async fn with_signer(pool: PgPool, signer: Signer, algorithms: &[&str]) -> Self {
        Self::build(pool, testing::unreachable_objects(), signer, algorithms).await
    }

    async fn build(pool: PgPool, objects: Objects, signer: Signer, algorithms: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seed = seed(&pool).await.unwrap();
        let issuer = Issuer::start(signer).await;
        let mut tx = db::platform(&pool).await.unwrap();
        let organization = tenant::ensure(&mut tx, "default", "default").await.unwrap().organization_id;
        let there = tenant::ensure(&mut tx, "elsewhere", "default").await.unwrap();
        let everything = [Scope::All, Scope::Admin];
        let new = |project_id| NewKey { project_id, name: "first", scopes: &everything, expires_in_seconds: None };
        let (_, key) = api_key::insert(&mut tx, &new(seed.project_id)).await.unwrap();
        let (_, theirs) = api_key::insert(&mut tx, &new(there.project_id)).await.unwrap();
        tx.commit().await.unwrap();
        let other = Other { project: there.project_id, key: theirs };
        let webhooks = WebhooksConfig { secret_key: Some("x".repeat(43).into()), ..WebhooksConfig::default() };
        let issuers = Issuers::new(vec![issuer.config(algorithms)]).unwrap();
        let serving = Serving { wait_seconds: 0, ..Serving::default() };
        let app = App {
            db: pool.clone(),
            objects: objects.clone(),
            limits: Arc::new(Limits::default()),
            inference: Inference::new(pool.clone(), objects.clone(), serving, Prices::default()).unwrap(),
            base_imports: Arc::new(Places::new(1, 1)),
            adapter_imports: Arc::new(Places::new(1, 1)),
            text: Arc::new(crate::files::text_places::TextPlaces::new(1)),
            streams: Arc::new(Semaphore::new(1)),
            stopping: CancellationToken::new(),
            webhooks: Arc::new(Webhooks::new(&webhooks).unwrap()),
            policies: Arc::default(),
            authenticator: Authenticator::new(pool.clone(), issuers, None),
            rate_limiter: Arc::new(RateLimiter::new(RateLimits::default())),
            parsers: Arc::new(Places::new(2, 1)),
            reports: Arc::default(),
        };
        let inference = app.inference.clone();
        let router = router::router(app, "http://localhost", &Cors::default()).unwrap();
        Self { pool, router, objects, inference, issuer, seed, organization, key, other }
    }

    /// Returns a new key of the first organization's project with these scopes.
    pub(crate) async fn key_with(&self, scopes: &[Scope]) -> String {
        let mut tx = db::platform(&self.pool).await.unwrap();
        let new = NewKey { project_id: self.seed.project_id, name: "some", scopes, expires_in_seconds: None };
        let (_, secret) = api_key::insert(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        secret
    }

    /// Returns a token of a user with this role in the first organization.
    pub(crate) async fn person(&self, subject: &str, role: Role) -> String {
        let mut tx = db::scoped(&self.pool, Tenant::Organization(self.organization), None).await.unwrap();
        let who = member::Identity { issuer: &self.issuer.url, subject, email: None, name: None };
        let id = member::admit(&mut tx, self.organization, &who, role).await.unwrap();
        if role < Role::Admin {
            member::admit_to_project(&mut tx, self.seed.project_id, id, role).await.unwrap();
        }
        tx.commit().await.unwrap();
        self.issuer.token(subject)
    }

    pub(crate) async fn call(&self, method: Method, path: &str, bearer: &str, body: Option<Value>) -> Answer {
        self.call_with(method, path, &[("authorization", &format!("Bearer {bearer}"))], body).await
    }

    pub(crate) async fn get(&self, path: &str, bearer: &str) -> Answer {
        self.call(Method::GET, path, bearer, None).await
    }

    /// Creates a job over the seed's file with this `compute`.
    pub(crate) async fn create_job(&self, compute: Value) -> Answer {
        let body = json!({"model": "tiny", "training_file": self.seed.file_id.to_string(), "compute": compute});
        self.call(Method::POST, "/v1/fine_tuning/jobs", &self.key, Some(body)).await
    }

    pub(crate) async fn call_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            // Not only visible characters: an attacker may send others.
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        let answer = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = axum::body::to_bytes(answer.into_body(), 64 << 20).await.unwrap();
        Answer { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
    }
}

/// Inserts a job of the first project that has published an adapter; returns the job's ID, and the adapter's ID and
/// model.
pub(crate) async fn trained(world: &World) -> (String, String, String) {
    use attune_store::{adapters::adapter, runs::report};
    let mut conn = db::platform(&world.pool).await.unwrap();
    let job = testing::queued_job(&mut conn, world.seed).await.unwrap();
    let run = testing::claimed_run(&mut conn, job).await.unwrap();
    let events = [testing::started(), testing::checkpointed(10, 'd'), testing::published()];
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &events)).await.unwrap();
    let version = adapter::list(&mut conn, world.seed.project_id, None, None, 1).await.unwrap().remove(0);
    conn.commit().await.unwrap();
    (job.to_string(), version.adapter_version_id.to_string(), version.model_name)
}

/// Returns a well-formed key that was never issued.
pub(crate) fn unknown_secret() -> String {
    ids::api_key()
}
