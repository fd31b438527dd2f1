//! The parts of all objects of a provider.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names::{Instance, job_name};
use crate::{config::kubernetes::KubernetesConfig, providers::provider::Launch};

/// The parts of an object that are the same for all launches.
pub(super) struct Template<'a> {
    /// The configuration.
    pub(super) config: &'a KubernetesConfig,
    /// The API's address.
    pub(super) api_url: &'a str,
    /// The platform and the provider.
    pub(super) instance: &'a Instance,
}

impl Template<'_> {
    /// Returns the metadata of an object of a launch.
    pub(super) fn metadata(&self, launch: &Launch) -> ObjectMeta {
        ObjectMeta {
            name: Some(job_name(&launch.name)),
            namespace: Some(self.config.namespace.clone()),
            labels: Some(self.instance.labels(launch.program, &launch.name)),
            ..ObjectMeta::default()
        }
    }
}
