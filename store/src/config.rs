//! The parts of a binary's configuration that this crate needs. The binaries read them; nothing here reads the
//! environment.

use secrecy::SecretString;
use serde::Deserialize;

use crate::{error::StoreError, webhooks::seal::SealKey};

/// The `[database]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// The connection URL: `postgres://user:password@host:port/name`.
    pub url: SecretString,
    /// The connection URL of the role that owns the tables and migrates the schema. Default: `url`.
    pub owner_url: Option<SecretString>,
    /// The pool's size.
    #[serde(default = "sixteen")]
    pub max_connections: u32,
}

/// The `[object_store]` section: any S3-compatible service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// The endpoint, `http://host:port`. Default: AWS.
    pub endpoint: Option<String>,
    /// The region, such as `us-east-1`.
    #[serde(default = "us_east_1")]
    pub region: String,
    /// The bucket; created at startup if it is missing.
    pub bucket: String,
    /// The access key's ID.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// Path-style addressing: `http://host/bucket/key` instead of `http://bucket.host/key`, as most servers other than
    /// AWS need.
    #[serde(default = "yes")]
    pub path_style: bool,
}

/// The `[webhooks]` section, the same for the API and the scheduler.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// The key that seals endpoints' secrets; at least 32 characters. Without it there are no webhooks.
    pub secret_key: Option<SecretString>,
    /// Former values of `secret_key`. Secrets sealed under them still open, and are resealed when the scheduler starts.
    pub previous_secret_keys: Vec<SecretString>,
    /// Allows endpoints on this machine; for development only.
    pub allow_loopback: bool,
    /// The only ports that endpoints may use. Default: any.
    pub ports: Vec<u16>,
}

impl WebhooksConfig {
    /// Returns the key that seals secrets; `None`: there are no webhooks.
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
