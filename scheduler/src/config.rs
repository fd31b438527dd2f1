//! The scheduler's configuration: one file, overridden by `ATTUNE_…__…` variables, read once at startup.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use attune_domain::{
    autoscale::{DEFAULT_MAX_REPLICAS, DEFAULT_TARGET_CONCURRENCY, MAX_REPLICAS, MAX_TARGET_CONCURRENCY},
    bytes::Bytes,
    placement::ServedCompute,
    spec::Quantization,
};
use attune_inference::config::{self as inference, Prices};
use attune_store::{
    config::{DatabaseConfig, ObjectStoreConfig, WebhooksConfig},
    pools::pool_state::PoolDefaults,
};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use serde::Deserialize;

use self::{kubernetes::KubernetesConfig, offer_settings::check_price, slurm::SlurmConfig};

mod instance_types;
/// The settings of a Kubernetes cluster.
pub(crate) mod kubernetes;
/// The prices of the nodes of a Kubernetes cluster.
pub(crate) mod node_prices;
/// The settings that the offers of all clusters have.
pub(crate) mod offer_settings;
/// The settings of a Slurm cluster.
pub(crate) mod slurm;

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
    /// The providers; never empty.
    #[serde(default, rename = "provider")]
    pub(crate) providers: Vec<ProviderConfig>,
    /// The section `[local]`, instead of `[[provider]]`. [`Config::read`] moves it to `providers`.
    local: Option<LocalConfig>,
    /// The folder in which validation caches base models' text files, in the first provider's folder.
    #[serde(skip)]
    pub(crate) text_dir: PathBuf,
    /// Settings for replicas, and for the requests of batches.
    #[serde(default)]
    pub(crate) serving: Serving,
    /// The prices; the rows of batches are charged like other answers.
    #[serde(default)]
    pub(crate) prices: Prices,
    /// Webhooks: events sent to users' endpoints.
    #[serde(default)]
    pub(crate) webhooks: WebhooksConfig,
    /// The publication of metrics.
    #[serde(default)]
    pub(crate) metrics: MetricsConfig,
}

/// The `[metrics]` section.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MetricsConfig {
    /// The address that publishes metrics. Default: none.
    pub(crate) listen: Option<SocketAddr>,
    /// The number of projects whose jobs are counted separately: those with the most.
    pub(crate) projects: u32,
    /// The number of adapter versions whose traffic is published: those with the most requests in the last hour.
    pub(crate) adapters: u32,
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

/// A `[[provider]]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum ProviderConfig {
    /// This machine.
    Local(LocalConfig),
    /// A Slurm cluster.
    Slurm(SlurmConfig),
    /// A Kubernetes cluster.
    Kubernetes(Box<KubernetesConfig>),
}

impl ProviderConfig {
    /// Returns the provider's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Local(local) => &local.name,
            Self::Slurm(slurm) => &slurm.name,
            Self::Kubernetes(kubernetes) => &kubernetes.name,
        }
    }

    /// Returns the provider's folder on this machine.
    fn work_dir(&self) -> &Path {
        match self {
            Self::Local(local) => &local.work_dir,
            Self::Slurm(slurm) => &slurm.work_dir,
            Self::Kubernetes(kubernetes) => &kubernetes.work_dir,
        }
    }

    /// Checks the ranges of the values.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Local(local) => check_price(&format!("{}.usd_per_hour", local.name), local.usd_per_hour),
            Self::Slurm(slurm) => slurm.check(),
            Self::Kubernetes(kubernetes) => kubernetes.check(),
        }
    }
}

/// A `[[provider]]` section of the kind `local`, or the `[local]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalConfig {
    /// The provider's name, which nodes' rows keep.
    #[serde(default = "local")]
    pub(crate) name: String,
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
    /// Seconds without a request after which the replicas of a pool are stopped.
    pub(crate) idle_seconds: u64,
    /// The maximum number of replicas of a base model in one quantization, where deployments do not allow more.
    pub(crate) max_replicas: u32,
    /// The requests per replica, in progress and waiting, where deployments do not set them.
    pub(crate) target_concurrency: u32,
    /// The API's setting of this name, for the requests of batches.
    pub(crate) wait_seconds: u64,
    /// The API's setting of this name, for the requests of batches.
    #[serde(deserialize_with = "inference::quantization")]
    pub(crate) base_quantization: Quantization,
    /// The API's setting of this name, for the memory of replicas.
    pub(crate) compute: ServedCompute,
    /// The API's setting of this name, which it passes to replicas.
    pub(crate) speculation: bool,
}

impl Default for Serving {
    fn default() -> Self {
        let inference::Serving { wait_seconds, base_quantization, compute, speculation, .. } =
            inference::Serving::default();
        Self {
            idle_seconds: 900,
            max_replicas: DEFAULT_MAX_REPLICAS,
            target_concurrency: DEFAULT_TARGET_CONCURRENCY,
            wait_seconds,
            base_quantization,
            compute,
            speculation,
        }
    }
}

impl Serving {
    /// Checks the ranges of the values.
    fn check(&self) -> Result<(), String> {
        let check = |name: &str, value: u32, most: u32| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("serving.{name}: {value} is not from 1 to {most}")),
        };
        check("max_replicas", self.max_replicas, MAX_REPLICAS)?;
        check("target_concurrency", self.target_concurrency, MAX_TARGET_CONCURRENCY)
    }

    /// Returns the settings of pools without deployments.
    pub(crate) fn pool_defaults(&self) -> PoolDefaults {
        PoolDefaults {
            max_replicas: self.max_replicas,
            target_concurrency: self.target_concurrency,
            cooldown_seconds: u32::try_from(self.idle_seconds).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs()),
        }
    }

    /// Returns the settings for the requests of batches.
    pub(crate) fn inference(&self) -> inference::Serving {
        let Self { wait_seconds, base_quantization, compute, speculation, .. } = *self;
        inference::Serving { wait_seconds, base_quantization, compute, speculation, ..inference::Serving::default() }
    }
}

const fn one() -> usize {
    1
}

fn local() -> String {
    "local".into()
}

impl Config {
    /// Reads `file` and the environment.
    ///
    /// # Errors
    /// The file does not exist, is not TOML, or has an unknown, missing or invalid key.
    pub(crate) fn read(file: &Path) -> Result<Self, Box<figment::Error>> {
        let mut config: Self = Figment::new()
            .merge(Toml::file_exact(file))
            .merge(Env::prefixed("ATTUNE_").filter(|key| is_ours(key.as_str())).split("__"))
            .extract()
            .map_err(Box::new)?;
        let checked =
            config.settle_providers().and_then(|()| config.prices.check()).and_then(|()| config.serving.check());
        checked.map_err(|wrong| Box::new(figment::Error::from(wrong)))?;
        Ok(config)
    }

    /// Moves `[local]` to the providers, and checks these.
    fn settle_providers(&mut self) -> Result<(), String> {
        if let Some(local) = self.local.take() {
            if !self.providers.is_empty() {
                return Err("local: there are [[provider]] sections too. Use these or [local], not both.".into());
            }
            self.providers.push(ProviderConfig::Local(local));
        }
        let Some(first) = self.providers.first() else {
            return Err("provider: there is none. Add a [[provider]] section, or [local].".into());
        };
        self.text_dir = first.work_dir().join("text");
        let mut names = HashSet::new();
        for provider in &self.providers {
            provider.check()?;
            if !names.insert(provider.name()) {
                let name = provider.name();
                return Err(format!("provider: two have the name `{name}`. Set a different `name` in each section."));
            }
        }
        Ok(())
    }
}

/// Returns whether a variable is this program's; other `ATTUNE_` variables belong to other programs.
fn is_ours(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let sections =
        ["database__", "object_store__", "leases__", "local__", "prices__", "serving__", "webhooks__", "metrics__"];
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
        offer_settings::micro_usd(self.usd_per_hour)
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
    "#;

    const LOCAL: &str = "[local]\nwork_dir = '/tmp/node'";

    const PROVIDER: &str = "[[provider]]\nkind = 'local'\nwork_dir = '/tmp/other'";

    fn read(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Config::read(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = read(&format!("{LEAST}\n{LOCAL}")).unwrap();
        assert_eq!((config.leases.heartbeat_seconds, config.leases.max_attempts), (10, 3));
        let [ProviderConfig::Local(local)] = &config.providers[..] else { panic!("not one provider") };
        assert_eq!((local.max_concurrent_runs, config.serving.idle_seconds), (1, 900));
        assert_eq!((config.serving.inference(), config.prices), (inference::Serving::default(), Prices::default()));
        assert_eq!((local.name.as_str(), config.text_dir.as_path()), ("local", Path::new("/tmp/node/text")));
        assert!(local.memory() > Bytes(0));
        assert!(local.thread_count() > 0);
    }

    #[test]
    fn each_provider_section_is_a_provider_in_order() {
        let text = format!("{LEAST}\n{PROVIDER}\nthreads = 3\nusd_per_hour = 1\n{PROVIDER}\nname = 'spare'");
        let config = read(&text).unwrap();
        let names: Vec<_> = config.providers.iter().map(ProviderConfig::name).collect();
        assert_eq!((names, config.text_dir.as_path()), (vec!["local", "spare"], Path::new("/tmp/other/text")));
        let ProviderConfig::Local(first) = &config.providers[0] else { panic!("not local") };
        assert_eq!((first.thread_count(), first.micro_usd_per_hour()), (3, 1_000_000));
    }

    #[test]
    fn no_provider_two_of_one_name_and_local_with_others_are_refused() {
        let refused = |sections: &str| read(&format!("{LEAST}\n{sections}")).unwrap_err();
        let none = refused("");
        assert!(none.contains("provider: there is none. Add a [[provider]] section, or [local]."), "{none}");
        let both = refused(&format!("{LOCAL}\n{PROVIDER}"));
        assert!(both.contains("Use these or [local], not both."), "{both}");
        let twice = refused(&format!("{PROVIDER}\n{PROVIDER}"));
        assert!(twice.contains("provider: two have the name `local`."), "{twice}");
    }

    #[test]
    fn a_slurm_cluster_is_a_provider_after_this_machine() {
        let slurm = "[[provider]]\nkind = 'slurm'\nwork_dir = '/scratch'\nbinaries_dir = '/opt'\npartition = 'gpu'\n\
                     [[provider.offer]]\nname = 'a100'\nmemory_bytes = 64000000000\nthreads = 8";
        let config = read(&format!("{LEAST}\n{PROVIDER}\n{slurm}")).unwrap();
        let names: Vec<_> = config.providers.iter().map(ProviderConfig::name).collect();
        assert_eq!((names, config.text_dir.as_path()), (vec!["local", "slurm"], Path::new("/tmp/other/text")));
        let refused = read(&format!("{LEAST}\n{slurm}\nslots = 0")).unwrap_err();
        assert!(refused.contains("slurm.offer a100: slots: 0 is not from 1 to 64"), "{refused}");
    }

    #[test]
    fn the_example_of_a_slurm_cluster_is_valid() {
        let config = read(&format!("{LEAST}\n{}", include_str!("../../infra/slurm/provider.toml"))).unwrap();
        let [ProviderConfig::Slurm(slurm)] = &config.providers[..] else { panic!("not one cluster") };
        assert_eq!((slurm.offers.len(), slurm.offers[0].slots, slurm.offers[1].gres.as_deref()), (2, 8, None));
    }

    #[test]
    fn the_example_of_a_kubernetes_cluster_is_valid() {
        let config = read(&format!("{LEAST}\n{}", include_str!("../../infra/kubernetes/provider.toml"))).unwrap();
        let [ProviderConfig::Kubernetes(cluster)] = &config.providers[..] else { panic!("not one cluster") };
        assert_eq!((cluster.name.as_str(), cluster.offers.len(), cluster.offers[0].slots), ("kubernetes", 2, 8));
        let gpu = cluster.offers[1].gpu.as_ref().unwrap();
        assert_eq!((gpu.count, gpu.resource.as_str()), (1, "nvidia.com/gpu"));
    }

    #[test]
    fn an_unknown_kind_of_provider_is_named_with_the_known_ones() {
        let refused = read(&format!("{LEAST}\n[[provider]]\nkind = 'cloud'\nwork_dir = '/tmp/other'")).unwrap_err();
        assert!(refused.contains("`cloud`") && refused.contains("`local`"), "{refused}");
        let refused = read(&format!("{LEAST}\n{PROVIDER}\nwork_dirs = 'x'")).unwrap_err();
        assert!(refused.contains("work_dirs"), "{refused}");
        let refused = read(&format!("{LEAST}\n{PROVIDER}\nname = 'spare'\nusd_per_hour = -0.5")).unwrap_err();
        assert!(refused.contains("spare.usd_per_hour: -0.5"), "{refused}");
    }

    #[test]
    fn the_requests_of_batches_have_the_settings_of_the_api() {
        let sections = "[serving]\nwait_seconds = 7\nbase_quantization = 'int8'\ncompute = 'f32'\n\
                        speculation = false\n[prices]\nusd_per_million_input_tokens = 2.5";
        let config = read(&format!("{LEAST}\n{LOCAL}\n{sections}")).unwrap();
        let wanted = inference::Serving {
            wait_seconds: 7,
            base_quantization: Quantization::Int8,
            compute: ServedCompute::F32,
            speculation: false,
            ..inference::Serving::default()
        };
        assert_eq!((config.serving.inference(), config.serving.idle_seconds), (wanted, 900));
        assert_eq!((config.serving.max_replicas, config.serving.target_concurrency), (1, 8));
        assert_eq!(config.prices, Prices { usd_per_million_input_tokens: 2.5, ..Prices::default() });
        let refused = |sections: &str| read(&format!("{LEAST}\n{LOCAL}\n{sections}")).unwrap_err();
        let price = refused("[prices]\nusd_per_million_output_tokens = -1");
        assert!(price.contains("prices: -1 is not from 0 to 1000000000"), "{price}");
        let many = refused("[serving]\nmax_replicas = 33");
        assert!(many.contains("serving.max_replicas: 33 is not from 1 to 32"), "{many}");
        let name = refused("[serving]\nbase_quantization = 'int7'");
        assert!(name.contains("'int7' is not one of"), "{name}");
    }

    #[test]
    fn metrics_are_published_where_the_configuration_says() {
        let config = read(&format!("{LEAST}\n{LOCAL}\n[metrics]\nlisten = '127.0.0.1:9464'\nprojects = 5")).unwrap();
        assert_eq!((config.metrics.listen, config.metrics.projects), (Some(([127, 0, 0, 1], 9464).into()), 5));
    }

    #[test]
    fn an_unknown_key_stops_the_start_and_is_named() {
        let refused = read(&format!("{LEAST}\n{LOCAL}\n[leases]\nheartbeat = 1")).unwrap_err();
        assert!(refused.contains("heartbeat"), "{refused}");
        let refused = read(&format!("{LEAST}\n{LOCAL}\nusd_per_hour = -0.5")).unwrap_err();
        assert!(refused.contains("local.usd_per_hour: -0.5"), "{refused}");
    }
}
