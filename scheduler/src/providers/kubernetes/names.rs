//! Names and labels of objects. The labels name the platform and the provider, so that several can share a namespace.

use std::collections::BTreeMap;

use attune_domain::digest::Sha256;
use k8s_openapi::api::batch::v1::Job;
use kube::Resource;
use ring::digest::{SHA256, digest};

use crate::providers::provider::Program;

/// The label of all objects of Attune.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label of the program.
pub(super) const COMPONENT: &str = "app.kubernetes.io/component";
/// The label of the platform and the provider.
pub(super) const INSTANCE: &str = "attune.dev/instance";
/// The label of the run's or the replica's ID.
pub(super) const ID: &str = "attune.dev/id";
/// The annotation of a Job whose Secret exists.
pub(super) const RELEASED: &str = "attune.dev/released";

/// Returns the name of a handle's Job and Secret, a DNS label.
pub(super) fn job_name(handle: &str) -> String {
    handle.to_ascii_lowercase().replace('_', "-")
}

/// Returns the name of a program's container.
pub(super) const fn component(program: Program) -> &'static str {
    match program {
        Program::Trainer => "trainer",
        Program::Serving | Program::Bridge(_) => "serving",
    }
}

/// The label value of a platform and a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance(String);

impl Instance {
    /// Returns the label value: a digest, since an address is not a valid one.
    pub(super) fn new(provider: &str, api_url: &str) -> Self {
        let bytes = digest(&SHA256, format!("{provider}\n{api_url}").as_bytes());
        let digest = Sha256::from_digest(<[u8; 32]>::try_from(bytes.as_ref()).unwrap_or_default());
        Self(digest.to_string()[..16].to_owned())
    }

    /// Returns the labels of an object.
    pub(super) fn labels(&self, program: Program, handle: &str) -> BTreeMap<String, String> {
        let labels =
            [(MANAGED_BY, "attune"), (COMPONENT, component(program)), (INSTANCE, self.0.as_str()), (ID, handle)];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// Returns the selector of all objects of the platform and the provider.
    pub(super) fn selector(&self) -> String {
        format!("{MANAGED_BY}=attune,{INSTANCE}={}", self.0)
    }

    /// Returns whether a Job belongs to the platform and the provider, and has this handle.
    pub(super) fn owns(&self, job: &Job, handle: &str) -> bool {
        let wanted = [(MANAGED_BY, "attune"), (INSTANCE, self.0.as_str()), (ID, handle)];
        wanted.iter().all(|(key, value)| label(job, key) == Some(*value))
    }
}

/// Returns the value of an object's label.
pub(super) fn label<'a>(object: &'a impl Resource, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_label_values_are_valid_and_differ_by_platform() {
        assert_eq!(job_name("run_0190ABc"), "run-0190abc");
        let one = Instance::new("kubernetes", "http://a");
        let labels = one.labels(Program::Serving, "replica_1");
        assert!(
            labels.values().all(|value| value.len() <= 63 && value.chars().all(|c| c.is_alphanumeric() || c == '_'))
        );
        assert_ne!(one, Instance::new("kubernetes", "http://b"));
        assert_ne!(one, Instance::new("other", "http://a"));
    }
}
