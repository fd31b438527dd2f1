//! Authentication of a bearer token: the key or the person that it stands for.
//!
//! A result is cached for [`CACHE_TTL`], so that a busy key costs the database nothing; a change that this process makes
//! takes effect at once ([`Authenticator::forget`]), one of another process within that time. Expiry is checked at each
//! request.

use std::{sync::Arc, time::Duration};

use attune_domain::{
    access::Actor,
    id::PersonId,
    text::key_text::{self, Shape},
};
use attune_store::{
    db, mint,
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

/// Whom a bearer speaks for.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A program.
    Key(KeyGrant),
    /// Somebody whom an issuer vouches for.
    Person(Person),
}

/// Somebody, and where they belong.
#[derive(Debug, Clone)]
pub struct Person {
    /// Who.
    pub person_id: PersonId,
    /// The organizations that they are in.
    pub belongings: Vec<Belonging>,
    /// The projects that they reach.
    pub reaches: Vec<Reach>,
    /// Until when their token is good.
    pub expires_at: DateTime<Utc>,
}

const UNKNOWN: ApiError =
    ApiError::Unauthenticated("Incorrect API key provided: it is unknown, was revoked or has expired.");

/// The credentials behind bearer tokens: keys from the database, people by their issuers' tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Authenticator {
    db: PgPool,
    /// Credentials of the last seconds, by the SHA-256 of the token.
    cache: Cache<Vec<u8>, Arc<Credential>>,
    issuers: Issuers,
    /// The hash of the configured first key, which may have a shape of its own.
    first_key: Option<Arc<[u8]>>,
}

impl Authenticator {
    /// Creates an authenticator with an empty cache.
    #[must_use]
    pub fn new(db: PgPool, issuers: Issuers, first_key: Option<Arc<[u8]>>) -> Self {
        let cache = Cache::builder().max_capacity(CACHE_CAPACITY).time_to_live(CACHE_TTL).build();
        Self { db, cache, issuers, first_key }
    }

    /// Returns the configured issuers of people's tokens.
    #[must_use]
    pub const fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// Empties the cache, after keys, people or projects have changed.
    pub fn forget(&self) {
        self.cache.invalidate_all();
    }

    /// Returns the credential that `secret` stands for now.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`]: it stands for none. [`ApiError::Internal`].
    pub async fn check(&self, secret: &str) -> Result<Arc<Credential>, ApiError> {
        let hash = mint::hash(secret);
        let credential = match self.cache.get(&hash).await {
            Some(cached) => cached,
            None => {
                let found = Arc::new(self.find(secret, &hash).await?);
                self.cache.insert(hash, found.clone()).await;
                found
            }
        };
        let expires_at = match &*credential {
            Credential::Key(grant) => grant.expires_at,
            Credential::Person(person) => Some(person.expires_at),
        };
        if expires_at.is_some_and(|moment| moment <= Utc::now()) { Err(UNKNOWN) } else { Ok(credential) }
    }

    async fn find(&self, secret: &str, hash: &[u8]) -> Result<Credential, ApiError> {
        // Only the configured first key may have a shape of its own.
        let shape = if self.first_key.as_deref() == Some(hash) { Shape::Unchecked } else { key_text::shape(secret) };
        // A token has three parts with dots between them; a key has none.
        if shape == Shape::Wrong && secret.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return self.person(secret).await.map(Credential::Person);
        }
        // A mistyped key is known for one without asking.
        if shape == Shape::Wrong {
            return Err(ApiError::Unauthenticated(
                "Incorrect API key provided: it was mistyped or cut, for its checksum is wrong.",
            ));
        }
        let mut tx = db::platform(&self.db).await?;
        let grant = api_key::by_hash(&mut tx, hash).await?.ok_or(UNKNOWN)?;
        if let Some(id) = grant.holder.api_key_id {
            api_key::touch(&mut tx, id).await?;
        }
        tx.commit().await?;
        Ok(Credential::Key(grant))
    }

    async fn person(&self, token: &str) -> Result<Person, ApiError> {
        let claims = self.issuers.verify(token).await?;
        let mut tx = db::platform(&self.db).await?;
        let (person_id, belongings, reaches) = member::arrive(&mut tx, &claims.identity()).await?;
        tx.commit().await?;
        if belongings.is_empty() {
            return Err(ApiError::Unauthenticated(
                "The token is good, but nobody has let you into an organization; ask an owner or an admin of it.",
            ));
        }
        Ok(Person { person_id, belongings, reaches, expires_at: claims.expires_at() })
    }
}

impl Person {
    /// The project that the headers ask for, or the only one there is.
    ///
    /// # Errors
    /// [`ApiError::Mismatched`]: it is none of theirs. [`ApiError::Invalid`]: there are several.
    pub fn choose_project(&self, wanted: Option<&str>, of: Option<&str>) -> Result<&Reach, ApiError> {
        let mut found = self.reaches.iter().filter(|reach| {
            wanted.is_none_or(|id| id == reach.project_id.to_string())
                && of.is_none_or(|id| id == reach.organization_id.to_string())
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(ApiError::invalid(
                "OpenAI-Project",
                "You belong to several projects: say which one in the header OpenAI-Project.",
            )),
            (None, _) => Err(ApiError::Mismatched),
        }
    }

    /// The organization that the header asks for, or the only one there is.
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
                "You belong to several organizations: say which one in the header OpenAI-Organization.",
            )),
            (None, _) => Err(ApiError::Mismatched),
        }
    }

    /// Their request, as handlers see it.
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
