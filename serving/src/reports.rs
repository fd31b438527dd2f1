//! Reports to the platform: the replica's state at every heartbeat, and the instructions in the replies.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use attune_domain::{
    run::Directive,
    serve::{DiskAdapter, ReplicaReply, ReplicaReport},
};
use attune_node::{NodeError, Platform};
use attune_process::error_chain::chain;
use backon::{ExponentialBuilder, Retryable};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// The path of reports.
const PATH: &str = "/internal/replica/reports";

/// The time after which a report lists the disk cache again: other processes of the node change it too.
const DISK_LISTING_INTERVAL: Duration = Duration::from_secs(60);

/// A process that answers requests, as its reports describe it once its server listens.
pub(crate) trait Reporting: Send + Sync + 'static {
    /// Returns a report without the address and the disk cache.
    fn report(&self) -> ReplicaReport;

    /// Returns whether this process has changed the disk cache since it last listed it.
    fn disk_changed(&self) -> bool;

    /// Returns the adapters in the disk cache. May block.
    fn on_disk(&self) -> Result<Vec<DiskAdapter>, NodeError>;

    /// Follows the instructions about adapters, in tasks of their own.
    fn follow(self: &Arc<Self>, reply: ReplicaReply);
}

impl Reporting for App {
    fn report(&self) -> ReplicaReport {
        let adapter_states = self.adapters.states();
        ReplicaReport {
            active_requests: self.active.load(Ordering::Relaxed),
            resident_adapters: adapter_states.iter().map(|state| state.id).collect(),
            adapter_states,
            ..ReplicaReport::default()
        }
    }

    fn disk_changed(&self) -> bool {
        self.adapters.disk_changed()
    }

    fn on_disk(&self) -> Result<Vec<DiskAdapter>, NodeError> {
        self.adapters.on_disk()
    }

    fn follow(self: &Arc<Self>, reply: ReplicaReply) {
        let ReplicaReply { pinned, prefetch, forget, .. } = reply;
        self.adapters.pin(&pinned);
        for wanted in prefetch {
            let app = self.clone();
            tokio::spawn(async move { app.adapters.prefetch(&wanted).await });
        }
        if !forget.is_empty() {
            let app = self.clone();
            tokio::task::spawn_blocking(move || app.adapters.forget(&forget));
        }
    }
}

/// The state that reports contain.
pub(crate) struct Status<A> {
    /// The address and the state of the server, once it listens.
    pub(crate) open: OnceLock<(SocketAddr, Arc<A>)>,
    /// Notified when a report is due before the next heartbeat.
    pub(crate) changed: Notify,
}

impl<A> Default for Status<A> {
    fn default() -> Self {
        Self { open: OnceLock::new(), changed: Notify::new() }
    }
}

impl<A: Reporting> Status<A> {
    fn report(&self, disk_adapters: Option<Vec<DiskAdapter>>) -> ReplicaReport {
        let Some((address, app)) = self.open.get() else { return ReplicaReport::default() };
        ReplicaReport { address: Some(address.to_string()), disk_adapters, ..app.report() }
    }

    /// Returns the adapters in the disk cache, if `is_due` or this process has changed it. `None` until the server
    /// listens.
    async fn listing(&self, is_due: bool) -> Option<Vec<DiskAdapter>> {
        let (_, app) = self.open.get().filter(|(_, app)| is_due || app.disk_changed())?.clone();
        match tokio::task::spawn_blocking(move || app.on_disk()).await.ok()? {
            Ok(adapters) => Some(adapters),
            Err(why) => {
                tracing::warn!(why = chain(&why), "the disk cache cannot be listed");
                None
            }
        }
    }

    fn follow(&self, reply: ReplicaReply) {
        if let Some((_, app)) = self.open.get() {
            app.follow(reply);
        }
    }
}

/// Reports at every heartbeat and at every change, until `end`. The platform's response may request the stop.
pub(crate) async fn run<A: Reporting>(
    platform: Platform,
    status: Arc<Status<A>>,
    every: Duration,
    end: CancellationToken,
) {
    let mut listed: Option<Instant> = None;
    loop {
        let listing = status.listing(listed.is_none_or(|at| at.elapsed() >= DISK_LISTING_INTERVAL)).await;
        if listing.is_some() {
            listed = Some(Instant::now());
        }
        match platform.post::<_, ReplicaReply>(PATH, &status.report(listing)).await {
            Ok(ReplicaReply { directive: Directive::Stop, .. }) => {
                tracing::info!("the platform requested a stop");
                return end.cancel();
            }
            Ok(reply) => status.follow(reply),
            Err(why) if why.is_passing() => {
                tracing::warn!(%why, "a report failed");
                listed = None;
            }
            Err(why) => {
                tracing::warn!(%why, "the platform has ended this replica");
                return end.cancel();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = status.changed.notified() => {}
            () = end.cancelled() => return,
        }
    }
}

/// Reports the failure of the replica.
pub(crate) async fn last(platform: &Platform, why: String) {
    let report = ReplicaReport { failed: Some(why), ..ReplicaReport::default() };
    let tell = || async { platform.post::<_, ReplicaReply>(PATH, &report).await };
    if let Err(untold) = tell.retry(retries().with_max_times(4)).when(NodeError::is_passing).await {
        tracing::warn!(why = %untold, "the failure could not be reported");
    }
}

/// Returns the pauses between attempts to reach the platform.
pub(crate) fn retries() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(8).with_jitter()
}
