//! The authentication of bearer tokens: the API key or the user behind each.
//!
//! A result is cached for `CACHE_TTL`, so that a busy key costs no database queries. A change that this process makes
//! takes effect immediately (`Authenticator::forget`), one of another process within that time. Expiry is checked on
//! every request: that of keys by the database's clock and the time since its answer, that of users' tokens by this
//! machine's clock, since their issuers have no other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_domain::{
    access::Actor,
    id::PersonId,
    text::key_text::{self, Shape},
};
use attune_store::{
    db, ids,
    tenancy::{
        api_key::{self, Holder, KeyGrant},
        member::{self, Belonging, Reach},
    },
};
use chrono::{DateTime, Utc};
use moka::future::Cache;
use sqlx::PgPool;

use crate::{auth::issuers::Issuers, error::ApiError};

/// The time for which a credential is cached.
pub const CACHE_TTL: Duration = Duration::from_secs(5);

/// The number of credentials that are cached.
const CACHE_CAPACITY: u64 = 10_000;

/// The identity behind a bearer token.
#[derive(Debug, Clone)]
pub enum Credential {
    /// An API key.
    Key(KeyGrant, ValidUntil),
    /// A user whom an OIDC issuer authenticated.
    Person(Person),
}

/// A user, with their organizations and projects.
#[derive(Debug, Clone)]
pub struct Person {
    /// The user's ID.
    pub person_id: PersonId,
    /// The organizations that the user belongs to.
    pub belongings: Vec<Belonging>,
    /// The projects that the user has access to.
    pub reaches: Vec<Reach>,
    /// The expiry of the user's token.
    pub expires_at: DateTime<Utc>,
}

/// The moment at which a key expires; `None`: it does not.
pub type ValidUntil = Option<Instant>;

const UNKNOWN: ApiError =
    ApiError::Unauthenticated("Incorrect API key provided: it is unknown, was revoked or has expired.");

/// The authenticator of bearer tokens: API keys from the database, users by their issuers' tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Authenticator {
    db: PgPool,
    /// The credentials of the last seconds, by the SHA-256 of the token.
    cache: Cache<Vec<u8>, Arc<Credential>>,
    issuers: Issuers,
    /// The hash of the configured bootstrap key, which may have another format than generated keys.
    first_key: Option<Arc<[u8]>>,
}

impl Authenticator {
    /// Creates an authenticator with an empty cache.
    #[must_use]
    pub fn new(db: PgPool, issuers: Issuers, first_key: Option<Arc<[u8]>>) -> Self {
        let cache = Cache::builder().max_capacity(CACHE_CAPACITY).time_to_live(CACHE_TTL).build();
        Self { db, cache, issuers, first_key }
    }

    /// Returns the configured issuers of users' tokens.
    #[must_use]
    pub const fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// Empties the cache, after keys, users or projects have changed.
    pub fn forget(&self) {
        self.cache.invalidate_all();
    }

    /// Returns the credential that `secret` currently authenticates.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`]: the secret is unknown, revoked or expired. [`ApiError::Internal`].
    pub async fn check(&self, secret: &str) -> Result<Arc<Credential>, ApiError> {
        let hash = ids::hash(secret);
        let credential = match self.cache.get(&hash).await {
            Some(cached) => cached,
            None => {
                let found = Arc::new(self.find(secret, &hash).await?);
                self.cache.insert(hash, found.clone()).await;
                found
            }
        };
        let is_expired = match &*credential {
            Credential::Key(_, until) => until.is_some_and(|until| until <= Instant::now()),
            Credential::Person(person) => person.expires_at <= Utc::now(),
        };
        if is_expired { Err(UNKNOWN) } else { Ok(credential) }
    }

    async fn find(&self, secret: &str, hash: &[u8]) -> Result<Credential, ApiError> {
        // Only the configured bootstrap key may have another format.
        let shape = if self.first_key.as_deref() == Some(hash) { Shape::Unchecked } else { key_text::shape(secret) };
        // A JWT has three parts, separated by dots; an API key contains no dot.
        if shape == Shape::Wrong && secret.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return self.person(secret).await.map(Credential::Person);
        }
        // The checksum detects a mistyped key without a database query.
        if shape == Shape::Wrong {
            return Err(ApiError::Unauthenticated(
                "Incorrect API key provided: its checksum is wrong. It was mistyped or truncated.",
            ));
        }
        let asked = Instant::now();
        let mut tx = db::platform(&self.db).await?;
        let grant = api_key::by_hash(&mut tx, hash).await?.ok_or(UNKNOWN)?;
        if let Some(id) = grant.holder.api_key_id {
            api_key::touch(&mut tx, id).await?;
        }
        tx.commit().await?;
        // A key that lives longer than an `Instant` can state is forgotten with the cache.
        let until = grant.expires_in.and_then(|rest| asked.checked_add(rest));
        Ok(Credential::Key(grant, until))
    }

    async fn person(&self, token: &str) -> Result<Person, ApiError> {
        let claims = self.issuers.verify(token).await?;
        let mut tx = db::platform(&self.db).await?;
        let (person_id, belongings, reaches) = member::arrive(&mut tx, &claims.identity()).await?;
        tx.commit().await?;
        if belongings.is_empty() {
            return Err(ApiError::Unauthenticated(
                "The token is valid, but you are not a member of an organization. Ask an owner or an admin to add you.",
            ));
        }
        Ok(Person { person_id, belongings, reaches, expires_at: claims.expires_at() })
    }
}

impl Person {
    /// Returns the project that the headers name, or the user's only one.
    ///
    /// # Errors
    /// [`ApiError::Mismatched`]: the user has no access to it. [`ApiError::Invalid`]: the user has several and the
    /// headers select no single one.
    pub fn choose_project(&self, wanted: Option<&str>, of: Option<&str>) -> Result<&Reach, ApiError> {
        let mut found = self.reaches.iter().filter(|reach| {
            wanted.is_none_or(|id| id == reach.project_id.to_string())
                && of.is_none_or(|id| id == reach.organization_id.to_string())
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(ApiError::invalid(
                "OpenAI-Project",
                "You belong to several projects. Set the OpenAI-Project header to one of them.",
            )),
            (None, _) => Err(ApiError::Mismatched),
        }
    }

    /// Returns the organization that the header names, or the user's only one.
    ///
    /// # Errors
    /// As [`choose_project`](Self::choose_project).
    pub fn choose_organization(&self, wanted: Option<&str>) -> Result<&Belonging, ApiError> {
        let mut found =
            self.belongings.iter().filter(|one| wanted.is_none_or(|id| id == one.organization_id.to_string()));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(ApiError::invalid(
                "OpenAI-Organization",
                "You belong to several organizations. Set the OpenAI-Organization header to one of them.",
            )),
            (None, _) => Err(ApiError::Mismatched),
        }
    }

    /// Returns the holder that handlers see when the user acts in this project.
    pub fn holder(&self, reach: &Reach) -> Holder {
        let organization = self.belongings.iter().find(|one| one.organization_id == reach.organization_id);
        Holder {
            actor: Actor::Person(self.person_id),
            api_key_id: None,
            project_id: reach.project_id,
            project: reach.project.clone(),
            organization_id: reach.organization_id,
            organization: organization.map(|one| one.organization.clone()).unwrap_or_default(),
            administers_installation: false,
        }
    }
}
