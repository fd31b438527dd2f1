//! The registry of the configured providers. A node's row names the provider that its process runs at.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use attune_domain::{offer::Offer, serve::Engine};
use attune_process::{error_chain::chain, metrics::LAUNCHES};
use futures::future::join_all;
use tokio::sync::Notify;

use crate::{
    catalogue::SharedCatalogue,
    config::ProviderConfig,
    error::ProviderError,
    providers::{
        kubernetes::provider::Kubernetes,
        limited::{Limited, TimeLimits},
        local::Local,
        market::{Market, ProviderOffers},
        provider::{Launch, Process, Provider},
        slurm::provider::Slurm,
    },
};

/// The configured providers, in the configuration's order. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Providers {
    all: Arc<[Arc<dyn Provider>]>,
    /// The last offers of each provider, by its name.
    known: Arc<Mutex<HashMap<String, Vec<Offer>>>>,
    /// The catalogue that offers are filled from.
    catalogue: SharedCatalogue,
}

impl Providers {
    /// Creates the registry of `all`, whose names differ. Their calls get time limits.
    pub(crate) fn new(all: Vec<Arc<dyn Provider>>) -> Self {
        let limited = all.into_iter().map(|provider| {
            let limits = TimeLimits::of(provider.as_ref());
            Arc::new(Limited::new(provider, limits)) as Arc<dyn Provider>
        });
        Self { all: limited.collect(), known: Arc::default(), catalogue: SharedCatalogue::default() }
    }

    /// Creates the providers of the configuration. Each notifies `ended` when one of its processes ends.
    ///
    /// # Errors
    /// A provider cannot be created; the error names it.
    pub(crate) async fn open(
        configs: &[ProviderConfig],
        api_url: &str,
        catalogue: SharedCatalogue,
        ended: &Arc<Notify>,
    ) -> Result<Self> {
        let mut all: Vec<Arc<dyn Provider>> = Vec::with_capacity(configs.len());
        for config in configs {
            let created = create(config, api_url, &catalogue, ended).await;
            all.push(created.with_context(|| format!("the {} provider", config.name()))?);
        }
        Ok(Self { catalogue, ..Self::new(all) })
    }

    /// Returns the catalogue that offers are filled from.
    pub(crate) const fn catalogue(&self) -> &SharedCatalogue {
        &self.catalogue
    }

    /// Returns all providers.
    pub(crate) fn all(&self) -> &[Arc<dyn Provider>] {
        &self.all
    }

    /// Returns the provider of this name; `None`: it is not configured.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.all.iter().find(|provider| provider.name() == name)
    }

    /// Removes the offers of providers whose replicas cannot have an engine. Returns the reasons of these providers.
    pub(crate) fn retain_able(&self, engine: Engine, offers: &mut Vec<Offer>) -> Vec<String> {
        let refusal = |name: &str| self.get(name).and_then(|provider| provider.engine_refusal(engine));
        offers.retain(|offer| refusal(&offer.provider).is_none());
        self.all.iter().filter_map(|provider| provider.engine_refusal(engine)).collect()
    }

    /// Queries all providers at the same time for their offers. One that does not answer keeps its last known offers,
    /// of which nothing is free.
    pub(crate) async fn market(&self) -> Market {
        let answers = join_all(self.all.iter().map(|provider| provider.offers())).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.all.iter().zip(answers).map(|(provider, answer)| match answer {
            Ok(offers) => {
                known.insert(provider.name().to_owned(), offers.clone());
                ProviderOffers { provider: provider.name().to_owned(), offers, unreachable: None }
            }
            Err(error) => {
                let offers = known.get(provider.name()).cloned();
                let offers = offers.unwrap_or_else(|| provider.configured_offers());
                ProviderOffers::unreachable(provider.name(), offers, &chain(&error))
            }
        });
        Market::new(all.collect())
    }

    /// Queries all providers at the same time for their processes.
    pub(crate) async fn list(&self) -> Vec<(&Arc<dyn Provider>, Result<Vec<Process>, ProviderError>)> {
        let lists = join_all(self.all.iter().map(|provider| provider.list())).await;
        self.all.iter().zip(lists).collect()
    }

    /// Starts a process at the provider of this name, and returns its handle.
    ///
    /// # Errors
    /// The provider is not configured, or cannot start the process.
    pub(crate) async fn launch(&self, name: &str, launch: Launch) -> Result<String, ProviderError> {
        let program = launch.program.name();
        let Some(provider) = self.get(name) else {
            let cause = format!("the provider `{name}` is not configured").into();
            return Err(ProviderError { action: format!("starting {program}"), cause });
        };
        let launched = provider.launch(launch).await;
        let outcome = match &launched {
            Ok(_) => "ok",
            Err(error) if error.is_passing() => "passing",
            Err(_) => "failed",
        };
        LAUNCHES.inc([name, program, outcome]);
        launched
    }
}

/// Creates a provider.
async fn create(
    config: &ProviderConfig,
    api_url: &str,
    catalogue: &SharedCatalogue,
    ended: &Arc<Notify>,
) -> Result<Arc<dyn Provider>> {
    let created: Arc<dyn Provider> = match config {
        ProviderConfig::Local(local) => Arc::new(Local::new(local, api_url, ended.clone())?),
        ProviderConfig::Slurm(slurm) => Arc::new(Slurm::new(slurm, api_url)?),
        ProviderConfig::Kubernetes(cluster) => {
            Arc::new(Kubernetes::open(cluster, api_url, catalogue.clone(), ended.clone()).await?)
        }
    };
    Ok(created)
}

#[cfg(test)]
mod tests {
    use attune_domain::bytes::Bytes;

    use super::*;
    use crate::{
        config::LocalConfig,
        providers::provider::{Program, Resources},
    };

    async fn registry(work_dir: &std::path::Path) -> Providers {
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
        let (configs, catalogue) = ([config("near"), config("far")], SharedCatalogue::default());
        Providers::open(&configs, "http://127.0.0.1:1", catalogue, &Arc::default()).await.unwrap()
    }

    #[tokio::test]
    async fn providers_are_found_by_name_and_their_offers_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let providers = registry(folder.path()).await;
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
        let error = registry(folder.path()).await.launch("elsewhere", launch).await.unwrap_err();
        assert_eq!(chain(&error), "starting attune-serving failed: the provider `elsewhere` is not configured");
    }
}
