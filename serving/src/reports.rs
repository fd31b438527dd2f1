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
pub(crate) const PATH: &str = "/internal/replica/reports";

/// The time after which a report lists the disk cache again: other processes of the node change it too.
pub(crate) const DISK_LISTING_INTERVAL: Duration = Duration::from_secs(60);

/// The state that reports contain.
#[derive(Default)]
pub(crate) struct Status {
    /// The address and the state of the server, once it listens.
    pub(crate) open: OnceLock<(SocketAddr, Arc<App>)>,
    /// Notified when a report is due before the next heartbeat.
    pub(crate) changed: Notify,
}

impl Status {
    fn app(&self) -> Option<&Arc<App>> {
        self.open.get().map(|(_, app)| app)
    }

    fn report(&self, disk_adapters: Option<Vec<DiskAdapter>>) -> ReplicaReport {
        let adapter_states = self.app().map(|app| app.adapters.states()).unwrap_or_default();
        ReplicaReport {
            address: self.open.get().map(|(address, _)| address.to_string()),
            active_requests: self.app().map_or(0, |app| app.active.load(Ordering::Relaxed)),
            resident_adapters: adapter_states.iter().map(|state| state.id).collect(),
            adapter_states,
            disk_adapters,
            failed: None,
        }
    }

    /// Returns the adapters in the disk cache, if `is_due` or this process has changed it.
    async fn listing(&self, is_due: bool) -> Option<Vec<DiskAdapter>> {
        let app = self.app().filter(|app| is_due || app.adapters.disk_changed())?.clone();
        match tokio::task::spawn_blocking(move || app.adapters.on_disk()).await.ok()? {
            Ok(adapters) => Some(adapters),
            Err(why) => {
                tracing::warn!(why = chain(&why), "the disk cache cannot be listed");
                None
            }
        }
    }

    /// Follows the instructions about adapters, in tasks of their own.
    fn follow(&self, reply: ReplicaReply) {
        let Some(app) = self.app() else { return };
        let ReplicaReply { pinned, prefetch, forget, .. } = reply;
        app.adapters.pin(&pinned);
        for wanted in prefetch {
            let app = app.clone();
            tokio::spawn(async move { app.adapters.prefetch(&wanted).await });
        }
        if !forget.is_empty() {
            let app = app.clone();
            tokio::task::spawn_blocking(move || app.adapters.forget(&forget));
        }
    }
}

/// Reports at every heartbeat and at every change, until `end`. The platform's response may request the stop.
pub(crate) async fn run(platform: Platform, status: Arc<Status>, every: Duration, end: CancellationToken) {
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
