//! The two parts of a door's configuration that this room needs. Doors read them; nothing here reads the environment.

use secrecy::SecretString;
use serde::Deserialize;

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

const fn sixteen() -> u32 {
    16
}

fn us_east_1() -> String {
    "us-east-1".into()
}

const fn yes() -> bool {
    true
}
