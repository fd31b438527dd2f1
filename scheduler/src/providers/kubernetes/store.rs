//! The Jobs, pods and nodes as the last watch reported them, and the Jobs that this process starts and stops.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use attune_domain::run::process::WaitKind;
use chrono::Utc;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, Pod},
};
use kube::Resource;
use tokio::sync::Notify;

use super::{
    discovery,
    error::KubernetesError,
    job_status::{self, Facts, Status},
    names::{ID, label},
    pod_status,
    watch::Change,
};
use crate::{
    catalogue::SharedCatalogue,
    config::{kubernetes::KubernetesOffer, node_prices::NodePrices},
    providers::provider::{Process, Wait},
};

/// The objects of one kind by name.
struct Cache<K> {
    resource: &'static str,
    objects: HashMap<String, K>,
    is_listed: bool,
    /// The error of the last request, if it failed.
    failure: Option<KubernetesError>,
}

impl<K: Resource> Cache<K> {
    fn new(resource: &'static str) -> Self {
        Self { resource, objects: HashMap::new(), is_listed: false, failure: None }
    }

    /// Updates the cache.
    fn take(&mut self, change: Change<K>) {
        self.failure = None;
        match change {
            Change::Listed(objects, _) => {
                self.objects = objects.into_iter().map(named).collect();
                self.is_listed = true;
            }
            Change::Applied(object) => self.objects.extend([named(*object)]),
            Change::Deleted(object) => {
                self.objects.remove(name(&*object));
            }
            Change::Resumed => {}
            Change::Failed(error) => self.failure = Some(error),
        }
    }

    /// Returns whether the cache is up to date.
    fn check(&self) -> Result<(), KubernetesError> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.is_listed => Ok(()),
            None => Err(KubernetesError::NotListed { resource: self.resource }),
        }
    }
}

/// Returns an object with its name, without the fields that only the API server needs.
fn named<K: Resource>(mut object: K) -> (String, K) {
    object.meta_mut().managed_fields = None;
    (name(&object).to_owned(), object)
}

fn name(object: &impl Resource) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// Returns the UID of an object; empty: it has none.
pub(super) fn uid(object: &impl Resource) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

struct State {
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    /// The Jobs that this process starts, by name: each has its handle, and the time at which it was released.
    starting: HashMap<String, (String, Option<Instant>)>,
    /// The UIDs of Jobs that were stopped: they are not listed any more.
    stopped: HashSet<String>,
    /// The UIDs of Jobs whose container has started.
    started: HashSet<String>,
    /// The kind of the reason for which the pod of a Job was last seen waiting, by the UID of the Job.
    waits: HashMap<String, WaitKind>,
    /// The kinds of nodes that were seen, by name.
    kinds: BTreeMap<String, KubernetesOffer>,
}

/// The shared state of the watches and the provider.
pub(super) struct Store {
    state: Mutex<State>,
    /// The notification of the reconciler when a process ends.
    ended: Arc<Notify>,
    /// The catalogue that has the prices of nodes.
    catalogue: SharedCatalogue,
    /// The prices of the configuration.
    instance_usd_per_hour: BTreeMap<String, f64>,
}

impl Store {
    /// Creates a store before the first list.
    pub(super) fn new(
        ended: Arc<Notify>,
        catalogue: SharedCatalogue,
        instance_usd_per_hour: BTreeMap<String, f64>,
    ) -> Self {
        let state = State {
            jobs: Cache::new("jobs.batch"),
            pods: Cache::new("pods"),
            nodes: Cache::new("nodes"),
            starting: HashMap::new(),
            stopped: HashSet::new(),
            started: HashSet::new(),
            waits: HashMap::new(),
            kinds: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), ended, catalogue, instance_usd_per_hour }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a change of a Job.
    pub(super) fn job(&self, change: Change<Job>) {
        let is_end = match &change {
            Change::Applied(job) => job_status::is_finished(job),
            Change::Listed(..) | Change::Deleted(_) => true,
            Change::Resumed | Change::Failed(_) => false,
        };
        let listed = if let Change::Listed(_, since) = &change { Some(*since) } else { None };
        let deleted = if let Change::Deleted(job) = &change { Some(name(&**job).to_owned()) } else { None };
        let mut state = self.state();
        state.jobs.take(change);
        let State { jobs, starting, stopped, started, waits, .. } = &mut *state;
        starting.retain(|name, (_, released)| match jobs.objects.get(name) {
            Some(job) => !job_status::is_released(job),
            // A list that began after the release would have the Job if it still existed.
            None => deleted.as_ref() != Some(name) && released.is_none_or(|at| listed.is_none_or(|since| at > since)),
        });
        let uids: HashSet<_> = jobs.objects.values().map(uid).collect();
        stopped.retain(|one| uids.contains(one.as_str()));
        started.retain(|one| uids.contains(one.as_str()));
        waits.retain(|one, _| uids.contains(one.as_str()));
        drop(state);
        if is_end {
            self.ended.notify_one();
        }
    }

    /// Records a change of a pod.
    pub(super) fn pod(&self, change: Change<Pod>) {
        let is_end = match &change {
            Change::Applied(pod) => pod_status::is_terminal(pod),
            Change::Listed(..) | Change::Deleted(_) => true,
            Change::Resumed | Change::Failed(_) => false,
        };
        let mut state = self.state();
        state.pods.take(change);
        let State { pods, started, waits, .. } = &mut *state;
        for pod in pods.objects.values() {
            let owner = owner(pod).map(str::to_owned);
            if pod_status::has_started(pod) {
                started.extend(owner);
            } else {
                waits.extend(owner.zip(pod_status::pending(pod).map(|wait| wait.kind)));
            }
        }
        drop(state);
        if is_end {
            self.ended.notify_one();
        }
    }

    /// Records a change of a node. A kind of node that was seen stays: an autoscaler may add nodes of it again.
    pub(super) fn node(&self, change: Change<Node>) {
        let mut state = self.state();
        state.nodes.take(change);
        let State { nodes, kinds, .. } = &mut *state;
        let catalogue = self.catalogue.get();
        let prices =
            NodePrices { own: &self.instance_usd_per_hour, catalogue: &catalogue, now: Utc::now().timestamp() };
        for kind in discovery::kinds(nodes.objects.values(), prices) {
            let reason = kind.no_price.clone();
            let before = kinds.insert(kind.name.clone(), kind.clone()).and_then(|kind| kind.no_price);
            if let Some(reason) = reason.filter(|reason| before.as_ref() != Some(reason)) {
                tracing::warn!("no run starts on the nodes {}: {reason}", kind.name);
            }
        }
    }

    /// Returns the kinds of nodes that were seen.
    ///
    /// # Errors
    /// The nodes were never listed.
    pub(super) fn kinds(&self) -> Result<Vec<KubernetesOffer>, KubernetesError> {
        let state = self.state();
        if !state.nodes.is_listed {
            state.nodes.check()?;
        }
        Ok(state.kinds.values().cloned().collect())
    }

    /// Returns whether the Jobs and the pods are up to date.
    ///
    /// # Errors
    /// The error of the last request.
    pub(super) fn check(&self) -> Result<(), KubernetesError> {
        let state = self.state();
        state.jobs.check()?;
        state.pods.check()
    }

    /// Returns the processes.
    ///
    /// # Errors
    /// The error of the last request.
    pub(super) fn processes(&self, minutes: u32, queue: Option<&str>) -> Result<Vec<Process>, KubernetesError> {
        self.check()?;
        let state = self.state();
        let mut pods: HashMap<&str, Vec<&Pod>> = HashMap::new();
        for pod in state.pods.objects.values() {
            pods.entry(owner(pod).unwrap_or_default()).or_default().push(pod);
        }
        let mut processes: Vec<_> = state
            .starting
            .values()
            .map(|(handle, _)| {
                process(handle, Status::Pending(Wait::new(WaitKind::Starting, "Kubernetes is creating the Job")))
            })
            .collect();
        for (name, job) in &state.jobs.objects {
            let is_left_out = job.metadata.deletion_timestamp.is_some() || state.stopped.contains(uid(job));
            let Some(handle) = label(job, ID).filter(|_| !is_left_out && !state.starting.contains_key(name)) else {
                continue;
            };
            let pods = pods.get(uid(job)).map(Vec::as_slice).unwrap_or_default();
            let has_started = state.started.contains(uid(job)) || pods.iter().any(|pod| pod_status::has_started(pod));
            let waited_for = state.waits.get(uid(job)).copied();
            let facts = Facts { pods, has_started, waited_for, minutes, queue };
            processes.push(process(handle, job_status::status(job, &facts)));
        }
        Ok(processes)
    }

    /// Returns a Job.
    pub(super) fn get(&self, name: &str) -> Option<Job> {
        self.state().jobs.objects.get(name).cloned()
    }

    /// Records that a Job was stopped. The watch may not have reported it yet.
    pub(super) fn stopped(&self, name: &str, uid: &str) {
        let mut state = self.state();
        state.starting.remove(name);
        state.stopped.insert(uid.to_owned());
    }

    /// Records that this process starts a Job, which waits until the watch reports that it was released.
    pub(super) fn start(&self, name: &str, handle: &str) -> Starting<'_> {
        self.state().starting.insert(name.to_owned(), (handle.to_owned(), None));
        Starting { store: self, name: name.to_owned(), is_released: false }
    }
}

fn process(handle: &str, status: Status) -> Process {
    let (pending, ended) = match status {
        Status::Pending(reason) => (Some(reason), None),
        Status::Running => (None, None),
        Status::Ended(ended) => (None, Some(ended)),
    };
    Process { handle: handle.to_owned(), pending, ended }
}

/// Returns the UID of the Job of a pod.
fn owner(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.kind == "Job").map(|owner| owner.uid.as_str())
}

/// The start of a Job. If it is dropped before [`Starting::released`], the start has failed.
pub(super) struct Starting<'a> {
    store: &'a Store,
    name: String,
    is_released: bool,
}

impl Starting<'_> {
    /// Records that the Job was released.
    pub(super) fn released(mut self) {
        let mut state = self.store.state();
        let State { jobs, starting, .. } = &mut *state;
        // The watch may have been faster.
        if jobs.objects.get(&self.name).is_some_and(job_status::is_released) {
            starting.remove(&self.name);
        } else if let Some((_, released)) = starting.get_mut(&self.name) {
            *released = Some(Instant::now());
        }
        drop(state);
        self.is_released = true;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.is_released {
            self.store.state().starting.remove(&self.name);
        }
    }
}
