//! The registry of the configured providers. A node's row names the provider that its process runs at.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Notify;

use crate::{
    config::ProviderConfig,
    error::ProviderError,
    providers::{
        local::Local,
        provider::{Launch, Provider},
        slurm::provider::Slurm,
    },
};

/// The configured providers, in the configuration's order. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Providers(Arc<[Arc<dyn Provider>]>);

impl Providers {
    /// Creates the registry of `all`, whose names differ.
    pub(crate) fn new(all: Vec<Arc<dyn Provider>>) -> Self {
        Self(all.into())
    }

    /// Creates the providers of the configuration. Each notifies `ended` when one of its processes ends.
    ///
    /// # Errors
    /// A provider cannot be created; the error names it.
    pub(crate) fn open(configs: &[ProviderConfig], api_url: &str, ended: &Arc<Notify>) -> Result<Self> {
        let mut all: Vec<Arc<dyn Provider>> = Vec::with_capacity(configs.len());
        for config in configs {
            let created = match config {
                ProviderConfig::Local(local) => {
                    Local::new(local, api_url, ended.clone()).map(|local| Arc::new(local) as Arc<dyn Provider>)
                }
                ProviderConfig::Slurm(slurm) => {
                    Slurm::new(slurm, api_url).map(|slurm| Arc::new(slurm) as Arc<dyn Provider>)
                }
            };
            all.push(created.with_context(|| format!("the {} provider", config.name()))?);
        }
        Ok(Self::new(all))
    }

    /// Returns all providers.
    pub(crate) fn all(&self) -> &[Arc<dyn Provider>] {
        &self.0
    }

    /// Returns the provider of this name; `None`: it is not configured.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.0.iter().find(|provider| provider.name() == name)
    }

    /// Starts a process at the provider of this name, and returns its handle.
    ///
    /// # Errors
    /// The provider is not configured, or cannot start the process.
    pub(crate) async fn launch(&self, name: &str, launch: Launch) -> Result<String, ProviderError> {
        match self.get(name) {
            Some(provider) => provider.launch(launch).await,
            None => {
                let cause = format!("the provider `{name}` is not configured").into();
                Err(ProviderError { action: format!("starting {}", launch.program.name()), cause })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::bytes::Bytes;
    use attune_process::error_chain::chain;

    use super::*;
    use crate::{
        config::LocalConfig,
        providers::provider::{Program, Resources},
    };

    fn registry(work_dir: &std::path::Path) -> Providers {
        let config = |name: &str| {
            ProviderConfig::Local(LocalConfig {
                name: name.into(),
                work_dir: work_dir.join(name),
                binaries_dir: Some(work_dir.into()),
                memory_bytes: Some(1 << 30),
                threads: Some(2),
                max_concurrent_runs: 1,
                usd_per_hour: 0.0,
            })
        };
        Providers::open(&[config("near"), config("far")], "http://127.0.0.1:1", &Arc::default()).unwrap()
    }

    #[tokio::test]
    async fn providers_are_found_by_name_and_their_offers_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let providers = registry(folder.path());
        let names: Vec<_> = providers.all().iter().map(|provider| provider.name()).collect();
        assert_eq!(names, ["near", "far"]);
        let far = providers.get("far").unwrap();
        assert_eq!((far.name(), far.offers().await.unwrap()[0].provider.as_str()), ("far", "far"));
        assert!(providers.get("elsewhere").is_none());
    }

    #[tokio::test]
    async fn a_launch_at_a_provider_that_is_not_configured_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources { offer: "this machine".into(), memory: Bytes::mib(1), threads: 1 };
        let launch =
            Launch { program: Program::Serving, name: "replica_1".into(), token: "x".to_owned().into(), resources };
        let error = registry(folder.path()).launch("elsewhere", launch).await.unwrap_err();
        assert_eq!(chain(&error), "starting attune-serving failed: the provider `elsewhere` is not configured");
    }
}
