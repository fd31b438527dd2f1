//! The settings of `attune up`: flags and their environment variables, which override a TOML file.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result, read_named};

/// The flags of `attune up`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct UpArgs {
    /// The address that the API listens on; port 0 selects a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT", env = "ATTUNE_LISTEN")]
    listen: Option<String>,
    /// The API's URL for clients, if it is behind a proxy
    #[arg(long, value_name = "URL", env = "ATTUNE_PUBLIC_URL")]
    public_url: Option<String>,
    /// A TOML file with settings (docs/CLI.md); flags override it
    #[arg(long, value_name = "FILE", env = "ATTUNE_CONFIG")]
    config: Option<PathBuf>,
    /// The URL of an external PostgreSQL database, used instead of a private cluster
    #[arg(long, value_name = "URL", env = "ATTUNE_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// The URL of the external database for the role that owns the tables [default: that of --database-url]
    #[arg(long, value_name = "URL", env = "ATTUNE_DATABASE_OWNER_URL", hide_env_values = true)]
    database_owner_url: Option<String>,
    /// The URL of an external S3 service, used instead of the embedded one
    #[arg(long, value_name = "URL", env = "ATTUNE_OBJECT_STORE_ENDPOINT")]
    object_store_endpoint: Option<String>,
    /// The bucket of the external S3 service; created if it is missing [default: attune]
    #[arg(long, value_name = "NAME", env = "ATTUNE_OBJECT_STORE_BUCKET")]
    object_store_bucket: Option<String>,
    /// The region of the external S3 service [default: us-east-1]
    #[arg(long, value_name = "NAME", env = "ATTUNE_OBJECT_STORE_REGION")]
    object_store_region: Option<String>,
    /// The access key ID of the external S3 service
    #[arg(long, value_name = "ID", env = "ATTUNE_OBJECT_STORE_ACCESS_KEY_ID")]
    object_store_access_key_id: Option<String>,
    /// The secret access key of the external S3 service; set it in the environment, where other users cannot see it
    #[arg(long, value_name = "SECRET", env = "ATTUNE_OBJECT_STORE_SECRET_ACCESS_KEY", hide_env_values = true)]
    object_store_secret_access_key: Option<String>,
    /// The folder of PostgreSQL's server programs [default: that of the newest version]
    #[arg(long, value_name = "DIR", env = "ATTUNE_POSTGRES_BIN")]
    postgres_bin: Option<PathBuf>,
    /// The folder of attune-api, attune-scheduler, attune-trainer and attune-serving [default: that of attune]
    #[arg(long, value_name = "DIR", env = "ATTUNE_BINARIES")]
    binaries: Option<PathBuf>,
}

/// The settings file. Every key is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsFile {
    listen: Option<String>,
    public_url: Option<String>,
    binaries_dir: Option<PathBuf>,
    postgres_bin_dir: Option<PathBuf>,
    database: Database,
    object_store: Option<ObjectStore>,
    limits: toml::Table,
    rate_limits: toml::Table,
    cors: toml::Table,
    leases: toml::Table,
    local: toml::Table,
    metrics: Metrics,
    prices: toml::Table,
    serving: Serving,
    webhooks: toml::Table,
    oidc: Vec<toml::Table>,
    provider: Vec<toml::Table>,
}

/// The section `[database]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Database {
    /// The URL of an external database; `None` is a private cluster.
    pub(crate) url: Option<String>,
    /// The URL for the owner of the tables; `None` is that of `url`.
    pub(crate) owner_url: Option<String>,
    /// The maximum number of connections of each of the API and the scheduler.
    pub(crate) max_connections: Option<u32>,
}

/// The section `[object_store]`, here and in the files of the API and the scheduler.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ObjectStore {
    /// The URL of the S3 service, `http://…` or `https://…`; `None` is AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// The region, which is part of S3 signatures.
    #[serde(default = "default_region")]
    pub(crate) region: String,
    /// The bucket; created if it is missing.
    #[serde(default = "default_bucket")]
    pub(crate) bucket: String,
    /// The access key ID.
    pub(crate) access_key_id: String,
    /// The secret access key.
    pub(crate) secret_access_key: String,
    /// Path-style requests: the bucket's name is in the path, not in the host name.
    #[serde(default = "default_path_style")]
    pub(crate) path_style: bool,
}

/// The section `[metrics]`: the addresses that publish metrics.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// The address of the API's metrics; `None`: they are not published.
    pub(crate) api: Option<SocketAddr>,
    /// The address of the scheduler's metrics; `None`: they are not published.
    pub(crate) scheduler: Option<SocketAddr>,
    /// The number of projects whose jobs are counted separately.
    pub(crate) projects: Option<u32>,
    /// The number of adapter versions whose traffic is published.
    pub(crate) adapters: Option<u32>,
}

/// The section `[serving]`: time-outs, the sizes of pools, and the quantization of base models.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serving {
    /// The longest time that a request waits for a replica.
    pub(crate) wait_seconds: Option<u64>,
    /// The time without requests after which the replicas of a pool are stopped.
    pub(crate) idle_seconds: Option<u64>,
    /// The maximum number of replicas of a pool without deployments.
    pub(crate) max_replicas: Option<u64>,
    /// The requests per replica of a pool without deployments.
    pub(crate) target_concurrency: Option<u64>,
    /// The quantization in which base models without an adapter are served.
    pub(crate) base_quantization: Option<String>,
    /// The way in which replicas compute with the weights of a quantized base.
    pub(crate) compute: Option<String>,
    /// True if replicas draft tokens of answers.
    pub(crate) speculation: Option<bool>,
    /// The maximum size of all adapters in the disk cache.
    pub(crate) disk_cache_bytes: Option<u64>,
}

/// The effective settings.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The address that the API listens on; the port may still be 0.
    pub(crate) listen: SocketAddr,
    /// The API's URL for clients, if it is not that of `listen`.
    pub(crate) public_url: Option<String>,
    /// The folder of Attune's other programs.
    pub(crate) binaries: PathBuf,
    /// The folder of PostgreSQL's server programs, if it is set.
    pub(crate) postgres_bin: Option<PathBuf>,
    /// The private or external database.
    pub(crate) database: Database,
    /// The external object store; `None` is the embedded one.
    pub(crate) object_store: Option<ObjectStore>,
    /// The section `[limits]`, passed to the API unchanged.
    pub(crate) limits: toml::Table,
    /// The section `[rate_limits]`, passed to the API unchanged.
    pub(crate) rate_limits: toml::Table,
    /// The section `[cors]`, passed to the API unchanged.
    pub(crate) cors: toml::Table,
    /// The section `[leases]`, passed to the scheduler unchanged.
    pub(crate) leases: toml::Table,
    /// The section `[local]`, passed to the scheduler with default paths added.
    pub(crate) local: toml::Table,
    /// The section `[metrics]`, whose keys are passed to the API or the scheduler.
    pub(crate) metrics: Metrics,
    /// The section `[prices]`, passed to the API and the scheduler unchanged.
    pub(crate) prices: toml::Table,
    /// The section `[serving]`, whose keys are passed to the API, the scheduler, or both.
    pub(crate) serving: Serving,
    /// The section `[webhooks]`, passed to the API and the scheduler with a default secret key added.
    pub(crate) webhooks: toml::Table,
    /// The sections `[[oidc]]`, passed to the API unchanged.
    pub(crate) oidc: Vec<toml::Table>,
    /// The sections `[[provider]]`, passed to the scheduler instead of `[local]`, with default paths added.
    pub(crate) providers: Vec<toml::Table>,
}

fn default_region() -> String {
    "us-east-1".into()
}

pub(crate) fn default_bucket() -> String {
    "attune".into()
}

const fn default_path_style() -> bool {
    true
}

impl Settings {
    /// Merges flags, the settings file and the defaults, in this order of precedence.
    ///
    /// # Errors
    /// [`CliError::Usage`]: an unknown or missing key, an invalid address, or an incomplete object store.
    pub(crate) fn settle(args: UpArgs) -> Result<Self> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => SettingsFile::default(),
        };
        let listen = args.listen.clone().or(file.listen).unwrap_or_else(|| "127.0.0.1:8080".into());
        let object_store = object_store(&args, file.object_store)?;
        Ok(Self {
            listen: address(&listen)?,
            public_url: args.public_url.or(file.public_url).map(|url| url.trim_end_matches('/').to_owned()),
            binaries: match args.binaries.or(file.binaries_dir) {
                Some(folder) => folder,
                None => own_folder()?,
            },
            postgres_bin: args.postgres_bin.or(file.postgres_bin_dir),
            database: Database {
                url: args.database_url.or(file.database.url),
                owner_url: args.database_owner_url.or(file.database.owner_url),
                ..file.database
            },
            object_store,
            limits: file.limits,
            rate_limits: file.rate_limits,
            cors: file.cors,
            leases: file.leases,
            local: file.local,
            metrics: file.metrics,
            prices: file.prices,
            serving: file.serving,
            webhooks: file.webhooks,
            oidc: file.oidc,
            providers: file.provider,
        })
    }
}

fn read(path: &Path) -> Result<SettingsFile> {
    let text = String::from_utf8(read_named(path)?)
        .map_err(|_| CliError::Usage(format!("{} is not UTF-8 text", path.display())))?;
    toml::from_str(&text).map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))
}

fn address(text: &str) -> Result<SocketAddr> {
    let bad = |why: String| CliError::Usage(format!("--listen: '{text}' is not an address like 127.0.0.1:8080{why}"));
    let mut found = text.to_socket_addrs().map_err(|e| bad(format!(" ({e})")))?;
    found.next().ok_or_else(|| bad(String::new()))
}

fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    own.and_then(|path| path.parent().map(Path::to_path_buf)).ok_or_else(|| {
        CliError::Failed("the folder of attune's own program is unknown. Set it with --binaries.".into())
    })
}

/// Returns the object store of the file, overridden by flags; `None` if neither sets one.
fn object_store(args: &UpArgs, file: Option<ObjectStore>) -> Result<Option<ObjectStore>> {
    let given = [
        &args.object_store_endpoint,
        &args.object_store_bucket,
        &args.object_store_region,
        &args.object_store_access_key_id,
        &args.object_store_secret_access_key,
    ];
    if file.is_none() && given.iter().all(|flag| flag.is_none()) {
        return Ok(None);
    }
    let need = |name: &str, flag: &Option<String>, kept: Option<&String>| {
        flag.clone()
            .or(kept.cloned())
            .ok_or_else(|| CliError::Usage(format!("an external object store needs --object-store-{name} too")))
    };
    let kept = file.as_ref();
    Ok(Some(ObjectStore {
        endpoint: args.object_store_endpoint.clone().or(kept.and_then(|k| k.endpoint.clone())),
        region: args.object_store_region.clone().or(kept.map(|k| k.region.clone())).unwrap_or_else(default_region),
        bucket: args.object_store_bucket.clone().or(kept.map(|k| k.bucket.clone())).unwrap_or_else(default_bucket),
        access_key_id: need("access-key-id", &args.object_store_access_key_id, kept.map(|k| &k.access_key_id))?,
        secret_access_key: need(
            "secret-access-key",
            &args.object_store_secret_access_key,
            kept.map(|k| &k.secret_access_key),
        )?,
        path_style: kept.is_none_or(|k| k.path_style),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::settle(UpArgs {
            config: Some(file.path().into()),
            listen: Some("127.0.0.1:9".into()),
            ..UpArgs::default()
        })
    }

    #[test]
    fn flags_win_over_the_file() {
        let settings = with_file("listen = '0.0.0.0:80'\n[database]\nurl = 'postgres://x'").unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:9");
        assert_eq!(settings.database.url.as_deref(), Some("postgres://x"));
        assert!(settings.object_store.is_none());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let refused = with_file("lisen = 'x'").unwrap_err();
        assert!(refused.to_string().contains("unknown field `lisen`"), "{refused}");
        assert_eq!(refused.exit_code(), 2);
    }

    #[test]
    fn half_an_object_store_is_refused() {
        let args = UpArgs { object_store_endpoint: Some("http://s3".into()), ..UpArgs::default() };
        let refused = Settings::settle(args).unwrap_err().to_string();
        assert_eq!(refused, "an external object store needs --object-store-access-key-id too");
    }
}
