//! The `Provider` implementation. A process is a Job: its labels name the platform, the provider and the handle.
//!
//! The Jobs continue when the scheduler stops. The next one finds them by their labels, and holds no state of its own
//! but the Jobs that are being started, and those that were stopped and that the cluster still has.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use attune_domain::{offer::Offer, serve::Engine};
use chrono::Utc;
use futures::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{
    cluster::Cluster,
    error::{Call, KubernetesError},
    job,
    names::{Instance, job_name},
    secret,
    store::{Store, uid},
    template::Template,
    watch::Watch,
};
use crate::{
    catalogue::SharedCatalogue,
    config::kubernetes::{KubernetesConfig, KubernetesOffer},
    error::ProviderError,
    providers::{
        provider::{Launch, Process, Provider},
        slots::is_slot_of,
    },
};

const JOBS: &str = "jobs.batch";

/// The Kubernetes provider.
pub(crate) struct Kubernetes {
    config: KubernetesConfig,
    /// The catalogue that offers with an instance type are filled from.
    catalogue: SharedCatalogue,
    api_url: String,
    instance: Instance,
    cluster: Cluster,
    store: Arc<Store>,
    /// The watches, which end with the provider.
    _watches: Vec<AbortOnDropHandle<()>>,
}

impl Kubernetes {
    /// Creates the provider from the configuration, and starts to watch. The API server need not be reachable.
    ///
    /// # Errors
    /// The credentials cannot be read.
    pub(crate) async fn open(
        config: &KubernetesConfig,
        api_url: &str,
        catalogue: SharedCatalogue,
        ended: Arc<Notify>,
    ) -> Result<Self> {
        let cluster = Cluster::open(config).await?;
        let instance = Instance::new(&config.name, api_url);
        let store = Arc::new(Store::new(ended, catalogue.clone(), config.instance_usd_per_hour.clone()));
        let watches = watches(&cluster, &store, &instance.selector(), config.discover);
        let (config, api_url) = (config.clone(), api_url.to_owned());
        Ok(Self { config, catalogue, api_url, instance, cluster, store, _watches: watches })
    }

    /// Returns the configured offers, filled from the catalogue.
    fn filled(&self) -> Vec<KubernetesOffer> {
        let (catalogue, now) = (self.catalogue.get(), Utc::now().timestamp());
        self.config.offers.iter().map(|offer| offer.filled(&catalogue, now)).collect()
    }

    /// Returns the offer of this name.
    fn offer(&self, name: &str) -> Result<KubernetesOffer, KubernetesError> {
        let discovered = if self.config.discover { self.store.kinds()? } else { Vec::new() };
        let mut offers = self.filled().into_iter().chain(discovered);
        let offer = offers.find(|offer| is_slot_of(name, &offer.name));
        offer.ok_or_else(|| KubernetesError::NoOffer { offer: name.to_owned() })
    }

    async fn start(&self, launch: &Launch) -> Result<String, KubernetesError> {
        let offer = self.offer(&launch.resources.offer)?;
        let template = Template { config: &self.config, api_url: &self.api_url, instance: &self.instance };
        let starting = self.store.start(&job_name(&launch.name), &launch.name);
        let job = self.create(&job::job(&template, launch, &offer), &launch.name).await?;
        self.release(&template, launch, &job).await?;
        starting.released();
        tracing::info!(handle = launch.name, offer = offer.name, "created the Job of {}", launch.program.name());
        Ok(launch.name.clone())
    }

    /// Creates a Job, or returns the one that an earlier request has created whose answer was lost.
    async fn create(&self, job: &Job, handle: &str) -> Result<Job, KubernetesError> {
        let (jobs, call, parameters) =
            (self.cluster.jobs(), Call { verb: "create", resource: JOBS }, PostParams::default());
        match self.cluster.repeat(call, || jobs.create(&parameters, job)).await {
            Err(error) if error.is_refused(409) => {}
            answer => return answer,
        }
        let name = job_name(handle);
        match self.find(&name).await? {
            Some(found) if !self.instance.owns(&found, handle) => Err(KubernetesError::NameTaken { name }),
            Some(found) if found.metadata.deletion_timestamp.is_none() => Ok(found),
            _ => Err(KubernetesError::BeingDeleted { name }),
        }
    }

    /// Creates the Secret of a Job, and then releases the Job.
    async fn release(&self, template: &Template<'_>, launch: &Launch, job: &Job) -> Result<(), KubernetesError> {
        let (secrets, secret) = (self.cluster.secrets(), secret::secret(template, launch, job));
        let (call, parameters) = (Call { verb: "create", resource: "secrets" }, PostParams::default());
        match self.cluster.repeat(call, || secrets.create(&parameters, &secret)).await {
            // The answer to an earlier request was lost: the name is that of this launch.
            Err(error) if !error.is_refused(409) => return Err(error),
            _ => {}
        }
        let (jobs, name) = (self.cluster.jobs(), job_name(&launch.name));
        let patch = Patch::Merge(job::release(self.config.local_queue.as_deref()));
        let (call, parameters) = (Call { verb: "patch", resource: JOBS }, PatchParams::default());
        self.cluster.repeat(call, || jobs.patch(&name, &parameters, &patch)).await.map(drop)
    }

    async fn find(&self, name: &str) -> Result<Option<Job>, KubernetesError> {
        let (jobs, call) = (self.cluster.jobs(), Call { verb: "get", resource: JOBS });
        self.cluster.repeat(call, || jobs.get_opt(name)).await
    }

    /// Deletes the Job of a handle; the cluster then deletes its pod and its Secret. No Job is no error.
    async fn delete(&self, handle: &str) -> Result<(), KubernetesError> {
        let name = job_name(handle);
        let known = match self.store.get(&name) {
            Some(job) => Some(job),
            None => self.find(&name).await?,
        };
        let Some(job) = known.filter(|job| self.instance.owns(job, handle)) else { return Ok(()) };
        let preconditions = Preconditions { uid: Some(uid(&job).to_owned()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let (jobs, call) = (self.cluster.jobs(), Call { verb: "delete", resource: JOBS });
        match self.cluster.repeat(call, || jobs.delete(&name, &parameters)).await {
            // It is gone already; with 409, another Job has the name.
            Err(error) if !error.is_refused(404) && !error.is_refused(409) => return Err(error),
            _ => self.store.stopped(&name, uid(&job)),
        }
        Ok(())
    }

    fn failed(action: &str, cause: KubernetesError) -> ProviderError {
        ProviderError { action: action.to_owned(), cause: cause.into() }
    }
}

/// Starts the watches of the Jobs and the pods of the provider, and of the nodes if they are offered.
fn watches(cluster: &Cluster, store: &Arc<Store>, labels: &str, discover: bool) -> Vec<AbortOnDropHandle<()>> {
    let labels = Some(labels.to_owned());
    let (jobs, pods, nodes) = (store.clone(), store.clone(), store.clone());
    let watch = Watch { cluster: cluster.clone(), api: cluster.jobs(), resource: JOBS, labels: labels.clone() };
    let mut all = vec![tokio::spawn(watch.run(move |change| jobs.job(change)))];
    let watch = Watch { cluster: cluster.clone(), api: cluster.pods(), resource: "pods", labels };
    all.push(tokio::spawn(watch.run(move |change| pods.pod(change))));
    if discover {
        let watch = Watch { cluster: cluster.clone(), api: cluster.nodes(), resource: "nodes", labels: None };
        all.push(tokio::spawn(watch.run(move |change| nodes.node(change))));
    }
    all.into_iter().map(AbortOnDropHandle::new).collect()
}

impl Provider for Kubernetes {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn outlives_scheduler(&self) -> bool {
        true
    }

    fn engine_refusal(&self, engine: Engine) -> Option<String> {
        match self.config.engine_image(engine) {
            Some((key, None)) => {
                Some(format!("{0} starts no {1}: {0}.{key} is not set", self.name(), engine.in_words()))
            }
            Some((_, Some(_))) | None => None,
        }
    }

    fn answer_limit(&self) -> Duration {
        // Queries are answered from the watches. A launch is several requests, each with its own limit.
        Duration::from_secs(self.config.request_seconds + 5)
    }

    fn configured_offers(&self) -> Vec<Offer> {
        self.filled().iter().flat_map(|offer| offer.slots(&self.config.name)).collect()
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        Box::pin(async {
            let failed = |cause| Self::failed("listing the offers", cause);
            self.store.check().map_err(failed)?;
            let mut offers = self.configured_offers();
            if self.config.discover {
                let kinds = self.store.kinds().map_err(failed)?;
                let is_new = |kind: &&KubernetesOffer| self.config.offers.iter().all(|offer| offer.name != kind.name);
                offers.extend(kinds.iter().filter(is_new).flat_map(|kind| kind.slots(&self.config.name)));
            }
            Ok(offers)
        })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        Box::pin(async move {
            let failed = |cause| Self::failed(&format!("starting {}", launch.program.name()), cause);
            self.start(&launch).await.map_err(failed)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        let (minutes, queue) = (self.config.time_limit_minutes, self.config.local_queue.as_deref());
        let listed = self.store.processes(minutes, queue);
        Box::pin(async move { listed.map_err(|cause| Self::failed("listing the Jobs", cause)) })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        let handle = handle.to_owned();
        Box::pin(async move {
            self.delete(&handle).await.map_err(|cause| Self::failed(&format!("stopping {handle}"), cause))
        })
    }
}
