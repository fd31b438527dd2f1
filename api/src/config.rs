//! The api's configuration: one file, overridden by `ATTUNE_…__…` variables, read once at the start.

use std::{net::SocketAddr, path::Path};

use attune_store::config::{DatabaseConfig, ObjectStoreConfig, WebhooksConfig};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use secrecy::SecretString;
use serde::Deserialize;

/// Everything that can be set. An unknown or missing key stops the start and is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How callers reach it, for the OpenAPI document.
    pub public_url: String,
    /// A key that is let in from the first start on, into the project `default`.
    pub bootstrap_key: Option<SecretString>,
    /// The database.
    pub database: DatabaseConfig,
    /// The object store.
    pub object_store: ObjectStoreConfig,
    /// How much is taken.
    #[serde(default)]
    pub limits: Limits,
    /// Chat.
    #[serde(default)]
    pub serving: Serving,
    /// What things cost.
    #[serde(default)]
    pub prices: Prices,
    /// Where users want to be told of events.
    #[serde(default)]
    pub webhooks: WebhooksConfig,
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest file.
    pub file_bytes: u64,
    /// The largest JSON body.
    pub json_bytes: u64,
    /// The largest single file of a base model.
    pub blob_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 512 << 20, json_bytes: 4 << 20, blob_bytes: 64 << 30 }
    }
}

/// `[serving]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serving {
    /// How long a chat request waits for a replica to come up.
    pub wait_seconds: u64,
}

impl Default for Serving {
    fn default() -> Self {
        Self { wait_seconds: 180 }
    }
}

/// `[prices]`: what users are charged, in their usage. All 0 if left out. The price of a machine's hour is its offer's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// Tokens with a loss, each as often as a step is trained on it.
    pub usd_per_million_trained_tokens: f64,
    /// Tokens of prompts.
    pub usd_per_million_input_tokens: f64,
    /// Tokens of answers.
    pub usd_per_million_output_tokens: f64,
}

impl Prices {
    /// A price in millionths of a dollar.
    #[must_use]
    pub fn micro_usd_per_million_trained_tokens(&self) -> i64 {
        (self.usd_per_million_trained_tokens * 1e6).round() as i64
    }

    /// A price is a number, and not below 0.
    fn check(&self) -> Result<(), Box<figment::Error>> {
        let Self { usd_per_million_trained_tokens, usd_per_million_input_tokens, usd_per_million_output_tokens } =
            *self;
        for price in [usd_per_million_trained_tokens, usd_per_million_input_tokens, usd_per_million_output_tokens] {
            if !(0.0..=1e9).contains(&price) {
                return Err(Box::new(figment::Error::from(format!("prices: {price} is not from 0 to 1000000000"))));
            }
        }
        Ok(())
    }
}

impl Config {
    /// Reads `file` and the environment.
    ///
    /// # Errors
    /// The file is not there, is not TOML, or has an unknown, missing or wrong key.
    pub fn read(file: &Path) -> Result<Self, Box<figment::Error>> {
        let config: Self = Figment::new()
            .merge(Toml::file_exact(file))
            .merge(Env::prefixed("ATTUNE_").filter(|key| is_ours(key.as_str())).split("__"))
            .extract()
            .map_err(Box::new)?;
        config.prices.check()?;
        Ok(config)
    }
}

/// Other `ATTUNE_` variables belong to other programs.
fn is_ours(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let sections = ["database__", "object_store__", "limits__", "serving__", "webhooks__", "prices__"];
    ["listen", "public_url", "bootstrap_key"].contains(&key.as_str()) || sections.iter().any(|s| key.starts_with(s))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Config::read(file.path()).map_err(|e| e.to_string())
    }

    const LEAST: &str = r#"
        listen = "127.0.0.1:8080"
        public_url = "http://127.0.0.1:8080"
        [database]
        url = "postgres://localhost/attune"
        [object_store]
        endpoint = "http://127.0.0.1:9000"
        bucket = "attune"
        access_key_id = "a"
        secret_access_key = "b"
    "#;

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = read(LEAST).unwrap();
        assert_eq!((config.limits.file_bytes, config.serving.wait_seconds), (536_870_912, 180));
    }

    #[test]
    fn a_price_below_nothing_stops_the_start() {
        let config = read(&format!("{LEAST}\n[prices]\nusd_per_million_trained_tokens = 2.5")).unwrap();
        assert_eq!(config.prices.micro_usd_per_million_trained_tokens(), 2_500_000);
        let refused = read(&format!("{LEAST}\n[prices]\nusd_per_million_input_tokens = -1")).unwrap_err();
        assert!(refused.contains("-1"), "{refused}");
    }

    #[test]
    fn an_unknown_key_stops_the_start_and_is_named() {
        let refused = read(&format!("{LEAST}\n[limits]\nfile_byte = 1")).unwrap_err();
        assert!(refused.contains("file_byte"), "{refused}");
    }
}
