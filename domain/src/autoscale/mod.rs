//! The number of replicas of a pool, from the requests in progress and waiting. Pure: it has no clock and no state but
//! the samples that the caller keeps.
//!
//! The rules are those of Knative's autoscaler (KPA, <https://knative.dev/docs/serving/autoscaling/kpa-specific/>) where
//! nothing else is stated: the mean over a stable window of 60 s, divided by the target concurrency, is the number of
//! replicas; a sudden load is answered in panic mode from a short window, in which the number never falls, until a
//! stable window has passed without cause; one decision at most halves the number. There are three differences:
//!
//! - Panic mode also begins when the load is clearly above that of the minute before, by three standard deviations of a
//!   Poisson count, and above the capacity. KPA waits until the load is twice the capacity, which a doubled load reaches
//!   only if the replicas were full.
//! - The panic window is 3 s instead of 6 s: generation takes seconds, so waiting requests accumulate meanwhile.
//! - The number falls to what the busiest of the last five minutes needs at 70 % of the target. Five minutes are the
//!   default stabilization window of Kubernetes' horizontal autoscaler
//!   (<https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>), whose default limit of increases,
//!   the larger of 4 replicas and 100 %, is used too. The margin keeps noise from reversing a change. Nor does it fall so
//!   far that a burst of these minutes would be cause for panic again: bursts that recur would start and stop replicas.

mod decide;
mod sample;
mod terms;
mod window;

#[cfg(test)]
mod tests;

pub use decide::decide;
pub use sample::Sample;
pub use terms::{Decision, Mode, Reason, Replicas, Settings};

/// The default target: requests, in progress and waiting, per replica.
pub const DEFAULT_TARGET_CONCURRENCY: u32 = 8;

/// The default maximum of a pool without deployments.
pub const DEFAULT_MAX_REPLICAS: u32 = 1;

/// The maximum number of replicas of a deployment.
pub const MAX_REPLICAS: u32 = 32;

/// The maximum target.
pub const MAX_TARGET_CONCURRENCY: u32 = 256;

/// The shortest cooldown, in seconds: that of Knative's `scale-to-zero-grace-period`.
pub const MIN_COOLDOWN_SECONDS: u32 = 30;

/// The longest cooldown, in seconds.
pub const MAX_COOLDOWN_SECONDS: u32 = 86_400;

/// The seconds for which samples are needed; older ones have no effect.
pub const KEPT_SECONDS: f64 = 301.0;
