//! Errors and memory under a long load.

use std::{pin::pin, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    latency::Loaded,
    load::{Outcome, open_loop},
    setup::Setup,
    stats::median,
};

/// The load, as a share of the capacity.
const SHARE: f64 = 0.8;
/// The time between samples of the resident memory.
const SAMPLE: Duration = Duration::from_secs(5);
/// The load is cut into this many parts. The first is not compared: caches fill in it.
const PARTS: usize = 6;

/// Loads a replica for `minutes`, and compares the median resident memory of the last part of the time with that of the
/// second part.
pub(crate) async fn measure(setup: &Setup, minutes: f64) -> Result<Value> {
    let Loaded { replica, mut mix, capacity } = Loaded::start(setup).await?;
    let time = Duration::from_secs_f64(60.0 * minutes);
    let mut samples = Vec::new();
    let outcome: Outcome = {
        let mut load = pin!(open_loop(&replica.client, &mut mix, SHARE * capacity, time));
        loop {
            tokio::select! {
                outcome = load.as_mut() => break outcome?,
                () = tokio::time::sleep(SAMPLE) => samples.push(replica.resident()?.0 as f64 / f64::from(1 << 20)),
            }
        }
    };
    replica.stop().await?;
    let part = samples.len() / PARTS;
    ensure!(part > 0, "{minutes} minutes are too short for {PARTS} parts of samples");
    Ok(json!({
        "requests": outcome.answers.len() + outcome.errors.len(),
        "errors": outcome.errors,
        "resident_mib_early": median(&samples[part..2 * part]),
        "resident_mib_late": median(&samples[samples.len() - part..]),
    }))
}
