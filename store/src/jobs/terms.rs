//! The terms of a job for its offer: its limits, and its duration on each offer. For the platform's own work.

use attune_domain::offer::{ComputeLimits, Slowness, Terms};
use serde_json::Value;

use crate::error::{StoreError, json, to_json};

/// The duration in seconds of a run that nothing is known about.
pub const UNKNOWN_SECONDS: f64 = 3600.0;

/// The terms of a job, as stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobTerms {
    /// The limits; for a job that began, without those on its cost and end.
    pub limits: ComputeLimits,
    /// The duration on each offer, relative to the expected duration; empty: the same on all.
    pub slowness: Vec<Slowness>,
}

impl JobTerms {
    /// Reads the columns of a job that began, or not.
    pub(crate) fn read(limits: Option<Value>, slowness: Option<Value>, has_begun: bool) -> Result<Self, StoreError> {
        let limits = read_limits(limits)?;
        Ok(Self {
            limits: if has_begun { limits.once_begun() } else { limits },
            slowness: slowness.map(|slowness| json("job.slowness", slowness)).transpose()?.unwrap_or_default(),
        })
    }

    /// Returns the terms at a time, for an expected duration in seconds.
    #[must_use]
    pub fn at(&self, now: f64, seconds: f64) -> Terms<'_> {
        Terms { limits: &self.limits, seconds, slowness: &self.slowness, now }
    }
}

/// Reads the column of a job's limits.
pub(crate) fn read_limits(limits: Option<Value>) -> Result<ComputeLimits, StoreError> {
    Ok(limits.map(|limits| json("job.limits", limits)).transpose()?.unwrap_or_default())
}

/// Returns the value of the column of a job's limits.
pub(crate) fn write_limits(limits: &ComputeLimits) -> Result<Option<Value>, StoreError> {
    (*limits != ComputeLimits::default()).then(|| to_json("job.limits", limits)).transpose()
}

/// Returns the value of the column of a job's relative durations.
pub(crate) fn write_slowness(slowness: &[Slowness]) -> Result<Option<Value>, StoreError> {
    (!slowness.is_empty()).then(|| to_json("job.slowness", &slowness)).transpose()
}
