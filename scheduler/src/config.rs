//! The scheduler's configuration: one file, overridden by `ATTUNE_…__…` variables, read once at startup.

use std::path::{Path, PathBuf};

use attune_domain::bytes::Bytes;
use attune_store::config::{DatabaseConfig, ObjectStoreConfig, WebhooksConfig};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use serde::Deserialize;

/// All settings. An unknown or missing key stops the start and is named in the error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The API's address that trainers and replicas report to.
    pub(crate) api_url: String,
    /// The database.
    pub(crate) database: DatabaseConfig,
    /// The object store.
    pub(crate) object_store: ObjectStoreConfig,
    /// Heartbeat interval, timeout and attempt limit of runs and replicas.
    #[serde(default)]
    pub(crate) leases: Leases,
    /// The local provider: this machine.
    pub(crate) local: LocalConfig,
    /// Settings for replicas.
    #[serde(default)]
    pub(crate) serving: Serving,
    /// Webhooks: events sent to users' endpoints.
    #[serde(default)]
    pub(crate) webhooks: WebhooksConfig,
}

/// The `[leases]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Leases {
    /// Seconds between two reports of a run or a replica.
    pub(crate) heartbeat_seconds: u64,
    /// Seconds without a report after which a run or a replica is declared lost.
    pub(crate) stale_after_seconds: u64,
    /// Consecutive attempts without a new checkpoint after which the job fails.
    pub(crate) max_attempts: i32,
}

impl Default for Leases {
    fn default() -> Self {
        Self { heartbeat_seconds: 10, stale_after_seconds: 45, max_attempts: 3 }
    }
}

/// The `[local]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalConfig {
    /// The folder for caches and logs.
    pub(crate) work_dir: PathBuf,
    /// The folder of `attune-trainer` and `attune-serving`. Default: this program's folder.
    pub(crate) binaries_dir: Option<PathBuf>,
    /// Memory that runs and replicas may use together, in bytes. Default: nine tenths of this machine's.
    pub(crate) memory_bytes: Option<u64>,
    /// CPU threads of each process. Default: the number of CPUs.
    pub(crate) threads: Option<u32>,
    /// The maximum number of concurrent runs.
    #[serde(default = "one")]
    pub(crate) max_concurrent_runs: usize,
    /// The price of an hour of a run, charged to its project, in US dollars.
    #[serde(default)]
    pub(crate) usd_per_hour: f64,
}

/// The `[serving]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serving {
    /// Seconds without a request after which a replica is stopped.
    pub(crate) idle_seconds: u64,
}

impl Default for Serving {
    fn default() -> Self {
        Self { idle_seconds: 900 }
    }
}

const fn one() -> usize {
    1
}

impl Config {
    /// Reads `file` and the environment.
    ///
    /// # Errors
    /// The file does not exist, is not TOML, or has an unknown, missing or invalid key.
    pub(crate) fn read(file: &Path) -> Result<Self, Box<figment::Error>> {
        let config: Self = Figment::new()
            .merge(Toml::file_exact(file))
            .merge(Env::prefixed("ATTUNE_").filter(|key| is_ours(key.as_str())).split("__"))
            .extract()
            .map_err(Box::new)?;
        let price = config.local.usd_per_hour;
        if !(0.0..=1e9).contains(&price) {
            let wrong = format!("local.usd_per_hour: {price} is not from 0 to 1000000000");
            return Err(Box::new(figment::Error::from(wrong)));
        }
        Ok(config)
    }
}

/// Returns whether a variable is this program's; other `ATTUNE_` variables belong to other programs.
fn is_ours(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let sections = ["database__", "object_store__", "leases__", "local__", "serving__", "webhooks__"];
    key == "api_url" || sections.iter().any(|section| key.starts_with(section))
}

impl LocalConfig {
    /// Returns the folder of the trainer's and the serving process's binaries.
    ///
    /// # Errors
    /// The path of this program cannot be determined.
    pub(crate) fn binaries(&self) -> std::io::Result<PathBuf> {
        match &self.binaries_dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(std::env::current_exe()?.parent().map(Path::to_path_buf).unwrap_or_default()),
        }
    }

    /// Returns the memory available to runs and replicas; a container's limit counts.
    pub(crate) fn memory(&self) -> Bytes {
        if let Some(bytes) = self.memory_bytes {
            return Bytes(bytes);
        }
        let Ok(mut system) = sysinfo::System::new() else { return Bytes(0) };
        system.refresh_memory();
        let total = system.total_memory();
        let limit = system.cgroup_limits().map_or(total, |limits| limits.total_memory);
        Bytes(total.min(limit) / 10 * 9)
    }

    /// Returns the price of an hour in millionths of a US dollar.
    pub(crate) fn micro_usd_per_hour(&self) -> u64 {
        (self.usd_per_hour * 1e6).round() as u64
    }

    /// Returns the number of CPU threads for each process.
    pub(crate) fn thread_count(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        self.threads.unwrap_or_else(cores)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LEAST: &str = r#"
        api_url = "http://127.0.0.1:8080"
        [database]
        url = "postgres://localhost/attune"
        [object_store]
        bucket = "attune"
        access_key_id = "a"
        secret_access_key = "b"
        [local]
        work_dir = "/tmp/node"
    "#;

    fn read(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Config::read(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = read(LEAST).unwrap();
        assert_eq!((config.leases.heartbeat_seconds, config.leases.max_attempts), (10, 3));
        assert_eq!((config.local.max_concurrent_runs, config.serving.idle_seconds), (1, 900));
        assert!(config.local.memory() > Bytes(0));
        assert!(config.local.thread_count() > 0);
    }

    #[test]
    fn an_unknown_key_stops_the_start_and_is_named() {
        let refused = read(&format!("{LEAST}\n[leases]\nheartbeat = 1")).unwrap_err();
        assert!(refused.contains("heartbeat"), "{refused}");
        let refused = read(&format!("{LEAST}\nusd_per_hour = -0.5")).unwrap_err();
        assert!(refused.contains("-0.5"), "{refused}");
    }
}
