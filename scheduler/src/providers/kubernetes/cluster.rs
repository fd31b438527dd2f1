//! The connection to the API server. Each request has a time limit, in which it is repeated while the server is too
//! busy.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, Pod, Secret},
};
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::error::{Call, KubernetesError};
use crate::config::kubernetes::KubernetesConfig;

/// The number of times that a request without an answer is sent.
const ATTEMPTS: u32 = 3;

/// The pause before a request is sent again.
const PAUSE: Duration = Duration::from_millis(500);

/// The connection to the API server, and the namespace. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cluster {
    client: Client,
    namespace: String,
    seconds: u64,
}

impl Cluster {
    /// Reads the credentials. The API server need not be reachable.
    ///
    /// # Errors
    /// The kubeconfig file cannot be read, or this program does not run in a pod.
    pub(super) async fn open(config: &KubernetesConfig) -> Result<Self> {
        let mut client = match &config.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("kubeconfig: {}", path.display()))?;
                let options = KubeConfigOptions { context: config.context.clone(), cluster: None, user: None };
                let read = kube::Config::from_custom_kubeconfig(file, &options).await;
                read.with_context(|| format!("kubeconfig: {}", path.display()))?
            }
            None => kube::Config::incluster().context("kubeconfig: it is not set, and this is not a pod")?,
        };
        client.connect_timeout = Some(Duration::from_secs(config.request_seconds));
        // A 429, a 503 and a 504 are repeated when the server's Retry-After has passed.
        client.default_retry = true;
        let client = Client::try_from(client).context("the client of the API server")?;
        Ok(Self { client, namespace: config.namespace.clone(), seconds: config.request_seconds })
    }

    /// Returns the Jobs of the namespace.
    pub(super) fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Returns the pods of the namespace.
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Returns the Secrets of the namespace.
    pub(super) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Returns the nodes of the cluster.
    pub(super) fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Waits for an answer until the time limit.
    ///
    /// # Errors
    /// [`KubernetesError`].
    pub(super) async fn call<T>(
        &self,
        call: Call,
        request: impl Future<Output = Result<T, kube::Error>> + Send,
    ) -> Result<T, KubernetesError> {
        match tokio::time::timeout(Duration::from_secs(self.seconds), request).await {
            Ok(answer) => answer.map_err(|error| self.error(call, &error)),
            Err(_) => Err(KubernetesError::Late { call, seconds: self.seconds }),
        }
    }

    /// Converts an error of the client.
    fn error(&self, call: Call, error: &kube::Error) -> KubernetesError {
        let scope = if call.resource == "nodes" { "the whole cluster" } else { self.namespace.as_str() };
        KubernetesError::new(call, scope, error)
    }

    /// Sends a request again when its answer is lost. The first one may have been carried out.
    ///
    /// # Errors
    /// [`KubernetesError`] of the last request.
    pub(super) async fn repeat<T, F>(&self, call: Call, request: impl Fn() -> F) -> Result<T, KubernetesError>
    where
        F: Future<Output = Result<T, kube::Error>> + Send,
    {
        let mut attempt = 1;
        loop {
            match self.call(call, request()).await {
                Err(error) if error.is_lost() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "sending the request again");
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }
}
