//! The Secret of a Job: the token of the run or the replica. The Job owns it, so it is deleted with the Job.

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use secrecy::ExposeSecret;

use super::{store::uid, template::Template};
use crate::providers::provider::Launch;

/// The key of the token.
pub(super) const TOKEN: &str = "token";

/// Returns the Secret of a Job that was created.
pub(super) fn secret(template: &Template<'_>, launch: &Launch, job: &Job) -> Secret {
    let mut metadata = template.metadata(launch);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: job.metadata.name.clone().unwrap_or_default(),
        uid: uid(job).to_owned(),
        ..OwnerReference::default()
    }]);
    Secret {
        metadata,
        immutable: Some(true),
        string_data: Some([(TOKEN.to_owned(), launch.token.expose_secret().to_owned())].into()),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}
