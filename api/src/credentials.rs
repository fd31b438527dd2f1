//! What a bearer is worth: the key or the person behind it.
//!
//! The answer is kept for [`KEPT`], so that a busy key costs the database nothing; a change that this process makes takes
//! hold at once ([`Kept::forget`]), one of another process within that time. What expires is checked at each request.

use std::{sync::Arc, time::Duration};

use attune_domain::{
    access::Actor,
    id::PersonId,
    key_text::{self, Shape},
};
use attune_store::{
    api_key::{self, Holder, KeyGrant},
    member::{self, Belonging, Reach},
    mint,
};
use chrono::{DateTime, Utc};
use moka::future::Cache;

use crate::{app::App, error::ApiError};

/// For how long an answer of the database is taken to be true.
pub const KEPT: Duration = Duration::from_secs(5);

/// The most answers that are kept.
const MOST: u64 = 10_000;

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

/// Answers of the last seconds, by the SHA-256 of the bearer.
#[derive(Debug, Clone)]
pub struct Kept(Cache<Vec<u8>, Arc<Credential>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST).time_to_live(KEPT).build())
    }
}

impl Kept {
    /// Keys, people or projects have changed: everybody is looked up anew.
    pub fn forget(&self) {
        self.0.invalidate_all();
    }
}

const UNKNOWN: ApiError =
    ApiError::Unauthenticated("Incorrect API key provided: it is unknown, was revoked or has expired.");

/// What `secret` is worth now.
///
/// # Errors
/// [`ApiError::Unauthenticated`]: nothing. [`ApiError::Internal`].
pub async fn check(app: &App, secret: &str) -> Result<Arc<Credential>, ApiError> {
    let hash = mint::hash(secret);
    let credential = match app.kept.0.get(&hash).await {
        Some(kept) => kept,
        None => {
            let found = Arc::new(find(app, secret, &hash).await?);
            app.kept.0.insert(hash, found.clone()).await;
            found
        }
    };
    let expires_at = match &*credential {
        Credential::Key(grant) => grant.expires_at,
        Credential::Person(person) => Some(person.expires_at),
    };
    if expires_at.is_some_and(|moment| moment <= Utc::now()) { Err(UNKNOWN) } else { Ok(credential) }
}

async fn find(app: &App, secret: &str, hash: &[u8]) -> Result<Credential, ApiError> {
    // Only the configured first key may have a shape of its own.
    let shape = if app.first_key.as_deref() == Some(hash) { Shape::Unchecked } else { key_text::shape(secret) };
    // A token has three parts with dots between them; a key has none.
    if shape == Shape::Wrong && secret.bytes().filter(|byte| *byte == b'.').count() == 2 {
        return person(app, secret).await.map(Credential::Person);
    }
    // A mistyped key is known for one without asking.
    if shape == Shape::Wrong {
        return Err(ApiError::Unauthenticated(
            "Incorrect API key provided: it was mistyped or cut, for its checksum is wrong.",
        ));
    }
    let mut db = app.platform().await?;
    let grant = api_key::by_hash(&mut db, hash).await?.ok_or(UNKNOWN)?;
    if let Some(id) = grant.holder.api_key_id {
        api_key::touch(&mut db, id).await?;
    }
    db.commit().await?;
    Ok(Credential::Key(grant))
}

async fn person(app: &App, token: &str) -> Result<Person, ApiError> {
    let claims = app.issuers.verify(token).await?;
    let mut db = app.platform().await?;
    let (person_id, belongings, reaches) = member::arrive(&mut db, &claims.identity()).await?;
    db.commit().await?;
    if belongings.is_empty() {
        return Err(ApiError::Unauthenticated(
            "The token is good, but nobody has let you into an organization; ask an owner or an admin of it.",
        ));
    }
    Ok(Person { person_id, belongings, reaches, expires_at: claims.expires_at() })
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
