//! The api's configuration: one file, overridden by `ATTUNE_…__…` variables, read once at the start.

use std::{net::SocketAddr, path::Path, time::Duration};

use attune_domain::spec::Quantization;
use attune_inbound::{Bounds, HEAD_SECONDS, MOST_CONNECTIONS, MOST_CONNECTIONS_PER_ADDRESS};
use attune_store::config::{DatabaseConfig, ObjectStoreConfig, WebhooksConfig};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use jsonwebtoken::Algorithm;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

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
    /// Who vouches for people.
    #[serde(default)]
    pub oidc: Vec<OidcConfig>,
    /// How often a key may ask.
    #[serde(default)]
    pub rate_limits: RateLimits,
    /// Pages of other origins.
    #[serde(default)]
    pub cors: Cors,
}

/// `[rate_limits]`, each per API key; 0, the default: as much as it likes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// Requests of any kind.
    pub requests_per_minute: u32,
    /// Tokens of prompts and of answers.
    pub tokens_per_minute: u32,
}

/// `[cors]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Origins whose pages may call, such as `https://app.example.org`; none by default.
    pub allowed_origins: Vec<String>,
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest file.
    pub file_bytes: u64,
    /// The most that a packed file may unpack to, and that a dataset's rows may take as lines of JSON.
    pub rows_bytes: u64,
    /// Memory of the process that reads a dataset: its address space, of which its own program takes a part.
    pub parser_memory_bytes: u64,
    /// Processor time of the process that reads a dataset.
    pub parser_cpu_seconds: u64,
    /// The largest JSON body.
    pub json_bytes: u64,
    /// The largest single file of a base model.
    pub blob_bytes: u64,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address: of a proxy in front, all.
    pub connections_per_address: usize,
    /// The time for the head of a request, and of a connection that is idle.
    pub head_seconds: u64,
    /// The most unfinished fine-tuning jobs of a project; 0: no cap.
    pub unfinished_jobs: u32,
    /// The most unfinished batches of a project; 0: no cap.
    pub unfinished_batches: u32,
    /// What a project may store, in bytes.
    pub storage_bytes: u64,
    /// What a project may store, in objects.
    pub storage_objects: u64,
}

impl Limits {
    /// The bounds of the server loop.
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
/// What a project may store, in bytes, unless the deployment says otherwise.
const STORAGE_BYTES: u64 = 1 << 40;

/// What a project may store, in objects, unless the deployment says otherwise.
const STORAGE_OBJECTS: u64 = 200_000;

/// Default of [`Limits::unfinished_jobs`].
const UNFINISHED_JOBS: u32 = 1000;

/// Default of [`Limits::unfinished_batches`].
const UNFINISHED_BATCHES: u32 = 100;

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
            storage_bytes: STORAGE_BYTES,
            storage_objects: STORAGE_OBJECTS,
        }
    }
}

/// `[serving]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serving {
    /// How long a chat request waits for a replica to come up.
    pub wait_seconds: u64,
    /// The quantization in which a base model itself is served, by its name: `none`, `int8`, `nf4` or `nf4-double`. An
    /// adapter is always served over the quantization that it was trained over.
    #[serde(deserialize_with = "quantization")]
    pub base_quantization: Quantization,
}

fn quantization<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantization, D::Error> {
    let name = String::deserialize(deserializer)?;
    Quantization::from_name(&name).ok_or_else(|| {
        let allowed = Quantization::ALL.map(Quantization::name).join(", ");
        serde::de::Error::custom(format!("base_quantization: '{name}' is not one of {allowed}"))
    })
}

impl Default for Serving {
    fn default() -> Self {
        Self { wait_seconds: 180, base_quantization: Quantization::None }
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

/// `[[oidc]]`: an issuer whose people may sign in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// The `iss` of its tokens, letter for letter.
    pub issuer: String,
    /// What `aud` must hold one of.
    pub audience: Vec<String>,
    /// Where its keys are; left out: where `<issuer>/.well-known/openid-configuration` says.
    pub jwks_url: Option<String>,
    /// What it signs with: `RS256`, `PS256`, `ES256`, `EdDSA`, and those with 384 and 512.
    #[serde(default = "rs256")]
    pub algorithms: Vec<String>,
    /// By how much its clock may differ from ours.
    #[serde(default = "thirty")]
    pub leeway_seconds: u64,
    /// A token that names an unknown key has the keys fetched anew at most every so often.
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
    /// Reads the algorithms, and looks at all the rest.
    ///
    /// # Errors
    /// What cannot be, with what is allowed.
    pub fn check(&self) -> Result<Vec<Algorithm>, String> {
        let wrong = |field: &str, why: String| format!("oidc '{}': {field}: {why}", self.issuer);
        check_issuer_url(&self.issuer).map_err(|why| wrong("issuer", why))?;
        if let Some(url) = &self.jwks_url {
            check_issuer_url(url).map_err(|why| wrong("jwks_url", why))?;
        }
        if self.audience.is_empty() || self.audience.iter().any(String::is_empty) {
            return Err(wrong("audience", "say for whom its tokens must be".into()));
        }
        if self.algorithms.is_empty() {
            return Err(wrong("algorithms", "say with what it signs".into()));
        }
        let read = |name: &String| match name.parse::<Algorithm>() {
            Ok(algorithm) if !name.starts_with("HS") => Ok(algorithm),
            _ => Err(wrong("algorithms", format!("'{name}' is not RS…, PS…, ES… or EdDSA"))),
        };
        self.algorithms.iter().map(read).collect()
    }
}

/// Keys that come over a connection that anybody can change are nobody's; this machine's own is another matter.
///
/// # Errors
/// It is no `https://` address, nor `http://` of the loopback.
pub fn check_issuer_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("'{text}' is no URL: {e}"))?;
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
    let sections =
        ["database__", "object_store__", "limits__", "serving__", "webhooks__", "prices__", "rate_limits__", "cors__"];
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
