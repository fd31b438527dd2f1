//! The API's configuration: one file, overridden by `ATTUNE_…__…` environment variables, read once at startup.

use std::{net::SocketAddr, path::Path, time::Duration};

use attune_inbound::{Bounds, HEAD_SECONDS, MOST_CONNECTIONS, MOST_CONNECTIONS_PER_ADDRESS};
use attune_inference::config::{Prices, Serving};
use attune_store::config::{DatabaseConfig, ObjectStoreConfig, WebhooksConfig};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use jsonwebtoken::Algorithm;
use secrecy::SecretString;
use serde::Deserialize;

/// The configuration. An unknown or missing key prevents startup and is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The API's public URL, for the OpenAPI document.
    pub public_url: String,
    /// An API key that is valid from the first start on, for the project `default`.
    pub bootstrap_key: Option<SecretString>,
    /// The database.
    pub database: DatabaseConfig,
    /// The object store.
    pub object_store: ObjectStoreConfig,
    /// The limits.
    #[serde(default)]
    pub limits: Limits,
    /// The section `[serving]`: the configuration of inference.
    #[serde(default)]
    pub serving: Serving,
    /// The prices.
    #[serde(default)]
    pub prices: Prices,
    /// The configuration of webhooks.
    #[serde(default)]
    pub webhooks: WebhooksConfig,
    /// The OIDC issuers whose users may sign in.
    #[serde(default)]
    pub oidc: Vec<OidcConfig>,
    /// The rate limits.
    #[serde(default)]
    pub rate_limits: RateLimits,
    /// The origins that may send cross-origin requests.
    #[serde(default)]
    pub cors: Cors,
    /// The publication of metrics.
    #[serde(default)]
    pub metrics: MetricsConfig,
}

/// The section `[metrics]`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// The address that publishes metrics; none by default.
    pub listen: Option<SocketAddr>,
}

/// The section `[rate_limits]`, per API key; 0, the default, is no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// The maximum number of requests of any kind per minute.
    pub requests_per_minute: u32,
    /// The maximum number of prompt and completion tokens per minute.
    pub tokens_per_minute: u32,
}

/// The section `[cors]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// The origins whose pages may call the API, such as `https://app.example.org`; none by default.
    pub allowed_origins: Vec<String>,
}

/// The section `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The maximum size of a file, in bytes.
    pub file_bytes: u64,
    /// The maximum size of a decompressed file, and of a dataset's rows as JSON lines, in bytes.
    pub rows_bytes: u64,
    /// The memory of the process that parses a dataset, in bytes: its address space, which includes its own program.
    pub parser_memory_bytes: u64,
    /// The processor time of the process that parses a dataset, in seconds.
    pub parser_cpu_seconds: u64,
    /// The maximum size of a JSON body, in bytes.
    pub json_bytes: u64,
    /// The maximum size of a single file of a base model, in bytes.
    pub blob_bytes: u64,
    /// The maximum number of concurrent connections.
    pub connections: usize,
    /// The maximum number of concurrent connections from one address; behind a proxy, all connections have its address.
    pub connections_per_address: usize,
    /// The time limit for the head of a request and for an idle connection, in seconds.
    pub head_seconds: u64,
    /// The maximum number of unfinished fine-tuning jobs of a project; 0 is no limit.
    pub unfinished_jobs: u32,
    /// The maximum number of unfinished batches of a project; 0 is no limit.
    pub unfinished_batches: u32,
    /// The maximum number of unfinished exports of a project; 0 is no limit.
    pub unfinished_exports: u32,
    /// The maximum storage of a project, in bytes.
    pub storage_bytes: u64,
    /// The maximum storage of a project, in objects.
    pub storage_objects: u64,
}

impl Limits {
    /// Returns the bounds of the server loop.
    #[must_use]
    pub fn connection_bounds(&self) -> Bounds {
        Bounds {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            head: Duration::from_secs(self.head_seconds),
            ..Bounds::default()
        }
    }
}
/// The default of [`Limits::storage_bytes`].
const STORAGE_BYTES: u64 = 1 << 40;

/// The default of [`Limits::storage_objects`].
const STORAGE_OBJECTS: u64 = 200_000;

/// The default of [`Limits::unfinished_jobs`].
const UNFINISHED_JOBS: u32 = 1000;

/// The default of [`Limits::unfinished_batches`].
const UNFINISHED_BATCHES: u32 = 100;

/// The default of [`Limits::unfinished_exports`].
const UNFINISHED_EXPORTS: u32 = 8;

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 4 << 30,
            rows_bytes: 4 << 30,
            parser_memory_bytes: 1 << 30,
            parser_cpu_seconds: 300,
            json_bytes: 4 << 20,
            blob_bytes: 64 << 30,
            connections: MOST_CONNECTIONS,
            connections_per_address: MOST_CONNECTIONS_PER_ADDRESS,
            head_seconds: HEAD_SECONDS,
            unfinished_jobs: UNFINISHED_JOBS,
            unfinished_batches: UNFINISHED_BATCHES,
            unfinished_exports: UNFINISHED_EXPORTS,
            storage_bytes: STORAGE_BYTES,
            storage_objects: STORAGE_OBJECTS,
        }
    }
}

/// An entry of `[[oidc]]`: an issuer whose users may sign in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// The issuer's `iss` claim, compared exactly.
    pub issuer: String,
    /// The accepted audiences; a token's `aud` must contain one of them.
    pub audience: Vec<String>,
    /// The URL of the issuer's key set; by default the `jwks_uri` of `<issuer>/.well-known/openid-configuration`.
    pub jwks_url: Option<String>,
    /// The accepted signature algorithms: `RS256`, `PS256`, `ES256`, `EdDSA`, and the variants with 384 and 512.
    #[serde(default = "rs256")]
    pub algorithms: Vec<String>,
    /// The tolerated difference between the issuer's clock and this one, in seconds.
    #[serde(default = "thirty")]
    pub leeway_seconds: u64,
    /// The minimum interval between two fetches of the keys, in seconds; unknown key IDs cause such fetches.
    #[serde(default = "thirty")]
    pub refetch_seconds: u64,
}

fn rs256() -> Vec<String> {
    vec!["RS256".into()]
}

const fn thirty() -> u64 {
    30
}

impl OidcConfig {
    /// Reads the algorithms and checks all other fields.
    ///
    /// # Errors
    /// The invalid field, with what is allowed.
    pub fn check(&self) -> Result<Vec<Algorithm>, String> {
        let wrong = |field: &str, why: String| format!("oidc '{}': {field}: {why}", self.issuer);
        check_issuer_url(&self.issuer).map_err(|why| wrong("issuer", why))?;
        if let Some(url) = &self.jwks_url {
            check_issuer_url(url).map_err(|why| wrong("jwks_url", why))?;
        }
        if self.audience.is_empty() || self.audience.iter().any(String::is_empty) {
            return Err(wrong("audience", "must not be empty".into()));
        }
        if self.algorithms.is_empty() {
            return Err(wrong("algorithms", "must not be empty".into()));
        }
        let read = |name: &String| match name.parse::<Algorithm>() {
            Ok(algorithm) if !name.starts_with("HS") => Ok(algorithm),
            _ => Err(wrong("algorithms", format!("'{name}' is not RS…, PS…, ES… or EdDSA"))),
        };
        self.algorithms.iter().map(read).collect()
    }
}

/// Checks the URL of an issuer or of its keys: keys fetched over a connection that an attacker can change prove
/// nothing, so only the loopback interface may use `http://`.
///
/// # Errors
/// The URL is invalid, or neither `https://` nor `http://` on a loopback address.
pub fn check_issuer_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("'{text}' is not a URL: {e}"))?;
    let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    match url.scheme() {
        "https" => Ok(()),
        "http" if local => Ok(()),
        _ => Err(format!("'{text}' must begin with https://")),
    }
}

impl Config {
    /// Reads `file` and the environment.
    ///
    /// # Errors
    /// The file does not exist, is not TOML, or has an unknown, missing or invalid key.
    pub fn read(file: &Path) -> Result<Self, Box<figment::Error>> {
        let config: Self = Figment::new()
            .merge(Toml::file_exact(file))
            .merge(Env::prefixed("ATTUNE_").filter(|key| is_ours(key.as_str())).split("__"))
            .extract()
            .map_err(Box::new)?;
        config.prices.check().map_err(|wrong| Box::new(figment::Error::from(wrong)))?;
        Ok(config)
    }
}

/// Returns whether an `ATTUNE_` variable belongs to this program.
fn is_ours(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let sections = [
        "database__",
        "object_store__",
        "limits__",
        "serving__",
        "webhooks__",
        "prices__",
        "rate_limits__",
        "cors__",
        "metrics__",
    ];
    ["listen", "public_url", "bootstrap_key", "oidc"].contains(&key.as_str())
        || sections.iter().any(|s| key.starts_with(s))
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
        assert_eq!((config.limits.file_bytes, config.serving.wait_seconds), (4_294_967_296, 180));
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

    #[test]
    fn an_issuer_is_pinned_to_public_keys_over_a_safe_way() {
        let read = |issuer: &str, rest: &str| {
            let text = format!("{LEAST}\n[[oidc]]\nissuer = '{issuer}'\naudience = ['attune']\n{rest}");
            read(&text)?.oidc[0].check()
        };
        assert_eq!(read("https://login.example.org", ""), Ok(vec![Algorithm::RS256]));
        assert_eq!(read("http://127.0.0.1:9", "algorithms = ['EdDSA']"), Ok(vec![Algorithm::EdDSA]));
        for (issuer, rest, named) in [
            ("http://login.example.org", "", "https://"),
            ("https://x", "jwks_url = 'ftp://x'", "jwks_url"),
            ("https://x", "algorithms = ['HS256']", "HS256"),
            ("https://x", "algorithms = ['none']", "none"),
            ("https://x", "algorithms = []", "algorithms"),
            ("https://x", "audiences = []", "audiences"),
        ] {
            let refused = read(issuer, rest).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
