//! The parts of a door's configuration that this room needs. Doors read them; nothing here reads the environment.

use secrecy::SecretString;
use serde::Deserialize;

use crate::{error::StoreError, webhooks::seal::SealKey};

/// `[database]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/name`.
    pub url: SecretString,
    /// As `url`, for the role that owns the tables and brings the schema up to date; left out: the one of `url`.
    pub owner_url: Option<SecretString>,
    /// The pool's size.
    #[serde(default = "sixteen")]
    pub max_connections: u32,
}

/// `[object_store]`: anything that speaks S3.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// `http://host:port`; left out for AWS itself.
    pub endpoint: Option<String>,
    /// `us-east-1`.
    #[serde(default = "us_east_1")]
    pub region: String,
    /// The bucket; made at the start if it is missing.
    pub bucket: String,
    /// The key's name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: SecretString,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`: what most servers other than AWS want.
    #[serde(default = "yes")]
    pub path_style: bool,
}

/// `[webhooks]`, the same for api and scheduler.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// What endpoints' secrets are sealed under; at least 32 characters. Without it there are no webhooks.
    pub secret_key: Option<SecretString>,
    /// Keys that were `secret_key` before. What they sealed still opens, and is sealed anew when the scheduler starts.
    pub previous_secret_keys: Vec<SecretString>,
    /// Endpoints on this machine are allowed: for development alone.
    pub allow_loopback: bool,
    /// The only ports that endpoints may have; left out: any.
    pub ports: Vec<u16>,
}

impl WebhooksConfig {
    /// What secrets are sealed under; `None`: there are no webhooks.
    ///
    /// # Errors
    /// [`StoreError::Seal`]: a key is too short.
    pub fn seal_key(&self) -> Result<Option<SealKey>, StoreError> {
        let current = self.secret_key.as_ref();
        current.map(|current| SealKey::with_previous(current, &self.previous_secret_keys)).transpose()
    }
}

const fn sixteen() -> u32 {
    16
}

fn us_east_1() -> String {
    "us-east-1".into()
}

const fn yes() -> bool {
    true
}
