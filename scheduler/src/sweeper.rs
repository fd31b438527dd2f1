//! Deletes expired content and rows, in a separate task so that a long pass does not delay repairs.

use std::time::{Duration, Instant};

use attune_process::metrics::{SWEEP_SECONDS, SWEEP_TIMESTAMP, SWEPT};
use attune_store::sweep::{self, KIND_SECONDS};
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// The time from the start to the first pass: short, so that a scheduler that restarts often sweeps all the same.
const FIRST: Duration = Duration::from_secs(20);
/// The interval between two passes.
const REST: Duration = Duration::from_secs(300);

/// Runs until `stop`.
pub(crate) async fn sweep(app: App, stop: CancellationToken) {
    let mut rest = FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
        rest = REST;
        let began = Instant::now();
        let pass = sweep::pass(&app.pool, &app.objects, Duration::from_secs(KIND_SECONDS));
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = pass => swept,
        };
        SWEEP_SECONDS.observe([], began.elapsed().as_secs_f64());
        SWEEP_TIMESTAMP.set_to_now();
        for kind in swept {
            SWEPT.add([kind.kind], kind.gone as f64);
            tracing::info!(count = kind.gone, "swept {}", kind.kind);
        }
    }
}
