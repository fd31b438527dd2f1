//! The tables and the figures of `make simulate`.

use serde_json::json;

use crate::{
    replay::Outcome,
    workload::{FLOODING, LIGHT, TENANTS, Workload},
};

/// Returns the number that a share of sorted numbers does not exceed; 0 without numbers.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// Returns Jain's index of fairness: 1 for equal numbers, 1 / n if one has all.
pub(crate) fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    sum * sum / (values.len() as f64 * squares)
}

/// Prints the waits of all tenants in two replays of the same time.
pub(crate) fn print_waits(workload: &Workload, from: f64, [usual, flooded]: [&Outcome; 2]) {
    println!(
        "\nWaits in seconds of jobs submitted from hour {:.0} to hour {:.0}",
        from / 3600.0,
        workload.span / 3600.0
    );
    println!("{:>6} {:>6} {:>12} {:>12} {:>12} {:>12}", "tenant", "jobs", "p50", "p95", "p50 flooded", "p95 flooded");
    for tenant in 0..TENANTS {
        let [usual, flooded] =
            [usual, flooded].map(|outcome| outcome.waits(&workload.jobs, tenant, from, workload.span));
        let [p50, p95] = [0.5, 0.95].map(|share| [percentile(&usual, share), percentile(&flooded, share)]);
        let note = match tenant {
            LIGHT => "  light",
            FLOODING => "  flooding: without the flood's own jobs",
            _ => "",
        };
        let jobs = usual.len();
        println!("{tenant:>6} {jobs:>6} {:>12.0} {:>12.0} {:>12.0} {:>12.0}{note}", p50[0], p95[0], p50[1], p95[1]);
    }
}

/// Prints the node-hours of all tenants.
pub(crate) fn print_shares(outcome: &Outcome) {
    println!("\nNode-hours of each tenant under saturation, at equal weights");
    for (tenant, seconds) in outcome.trained.iter().enumerate() {
        println!("{tenant:>6} {:>10.1}", seconds / 3600.0);
    }
}

/// Prints a figure that must be at least its bar.
pub(crate) fn at_least(figure: &str, value: f64, bar: f64) {
    println!("{}", json!({ "figure": figure, "value": value, "bar": bar }));
}

/// Prints a figure that must be at most its bar.
pub(crate) fn at_most(figure: &str, value: f64, bar: f64) {
    println!("{}", json!({ "figure": figure, "value": value, "bar": bar, "at_most": true }));
}
