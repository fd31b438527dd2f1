//! Lists one kind of object and watches it from there, without end. An expired watch lists again.
//!
//! The watcher of `kube::runtime` does the same, but does not report that a watch was resumed: a server that is
//! reachable again, and idle, would look like one that is not.

use std::{
    fmt::Debug,
    pin::pin,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;

use super::{
    cluster::Cluster,
    error::{Call, KubernetesError},
};

/// The number of objects of one page of a list.
const PAGE: u32 = 500;

/// Seconds after which the API server ends a watch. The watch then resumes.
const WATCH_SECONDS: u32 = 60;

/// The longest time between two events: the API server ended the watch, and its end was lost.
const IDLE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

/// The first pause before the next watch or list, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// The duration of a watch after which the next pause is the first one again.
const HEALTHY: Duration = Duration::from_secs(5);

/// A report of a watch.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// All objects, as they were at some time after the given one.
    Listed(Vec<K>, Instant),
    /// An object that was added or modified.
    Applied(Box<K>),
    /// The last state of an object that was deleted.
    Deleted(Box<K>),
    /// The API server accepted a watch.
    Resumed,
    /// The API server cannot be reached, or refuses.
    Failed(KubernetesError),
}

/// The objects to watch.
pub(super) struct Watch<K> {
    /// The connection.
    pub(super) cluster: Cluster,
    /// The kind of object.
    pub(super) api: Api<K>,
    /// The resource, as roles name it.
    pub(super) resource: &'static str,
    /// The selector of labels; `None`: all objects.
    pub(super) labels: Option<String>,
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Reports all changes, until it is dropped.
    pub(super) async fn run(self, report: impl Fn(Change<K>) + Send + Sync) {
        let (mut version, mut pause) = (None, PAUSES.0);
        loop {
            let since = Instant::now();
            if let Err(error) = self.round(&mut version, &report).await {
                tracing::debug!(%error, "watching {} failed", self.resource);
                report(Change::Failed(error));
            } else if since.elapsed() >= HEALTHY {
                pause = PAUSES.0;
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    /// Lists the objects unless `version` is that of a list or an event, and watches until the watch ends.
    async fn round(
        &self,
        version: &mut Option<String>,
        report: &(impl Fn(Change<K>) + Sync),
    ) -> Result<(), KubernetesError> {
        let from = match version.take() {
            Some(from) => from,
            None => {
                let since = Instant::now();
                let (objects, from) = self.list().await?;
                report(Change::Listed(objects, since));
                from
            }
        };
        let parameters =
            WatchParams { label_selector: self.labels.clone(), timeout: Some(WATCH_SECONDS), ..WatchParams::default() };
        let call = Call { verb: "watch", resource: self.resource };
        let stream = match self.cluster.call(call, self.api.watch(&parameters, &from)).await {
            Ok(stream) => stream,
            Err(error) if error.is_refused(410) => return Ok(()),
            Err(error) => {
                *version = Some(from);
                return Err(error);
            }
        };
        report(Change::Resumed);
        *version = Some(from);
        let mut stream = pin!(stream);
        loop {
            match tokio::time::timeout(IDLE, stream.next()).await {
                Ok(Some(Ok(event))) => *version = self.take(event, report),
                // It ended or was cut, and resumes from the last version.
                Ok(None | Some(Err(kube::Error::ReadEvents(_)))) | Err(_) => return Ok(()),
                // An event that cannot be read would be sent again.
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "the watch of {} cannot be read", self.resource);
                    *version = None;
                }
            }
            if version.is_none() {
                return Ok(());
            }
        }
    }

    async fn list(&self) -> Result<(Vec<K>, String), KubernetesError> {
        let mut all = Vec::new();
        let mut parameters =
            ListParams { label_selector: self.labels.clone(), limit: Some(PAGE), ..ListParams::default() };
        let call = Call { verb: "list", resource: self.resource };
        loop {
            let page = self.cluster.call(call, self.api.list(&parameters)).await?;
            all.extend(page.items);
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                let why = || KubernetesError::Unreadable { call, why: "it has no resourceVersion".into() };
                return Ok((all, version.ok_or_else(why)?));
            }
        }
    }

    /// Reports an event, and returns the version to resume from; `None`: list again.
    fn take(&self, event: WatchEvent<K>, report: &(impl Fn(Change<K>) + Sync)) -> Option<String> {
        let version = |object: &K| object.meta().resource_version.clone().filter(|version| !version.is_empty());
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = version(&object);
                report(Change::Applied(Box::new(object)));
                version
            }
            WatchEvent::Deleted(object) => {
                let version = version(&object);
                report(Change::Deleted(Box::new(object)));
                version
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => {
                tracing::debug!(code = status.code, "the watch of {} ended: {}", self.resource, status.message);
                None
            }
        }
    }
}
