//! An estimate: named terms and their sum, and the margin that a placement adds.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// The margin that a placement adds to a predicted peak by default, in percent of it. In the 64 jobs of
/// `make memory-report`, the largest underestimate is 15%: the allocator's holes differ between jobs, and between runs
/// of one job. Without swap, a machine that is full kills the run.
pub const MARGIN_PERCENT: u64 = 18;

/// Returns the memory that an offer must have for a process with this predicted peak: the peak and the default margin.
/// For a run on an offer, [`Margin::apply`](super::margin::Margin::apply) replaces that by the margin of the offer.
#[must_use]
pub const fn with_margin(peak: Bytes) -> Bytes {
    with_percent(peak, MARGIN_PERCENT)
}

/// Returns the bytes and a margin in percent of them.
pub(crate) const fn with_percent(bytes: Bytes, percent: u64) -> Bytes {
    Bytes(bytes.0.saturating_add((bytes.0 / 100).saturating_mul(percent)))
}

/// The terms of a phase: names and bytes.
pub(crate) type Terms = Vec<(&'static str, Bytes)>;

/// A peak memory estimate and its terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// The name and bytes of each term of the phase with the highest peak, in the order of a run.
    pub terms: Vec<(String, Bytes)>,
    /// The sum of the terms.
    pub peak: Bytes,
}

impl MemoryEstimate {
    /// Returns the estimate of a phase with these terms. Terms of 0 bytes are omitted.
    pub(crate) fn of(terms: &[(&str, Bytes)]) -> Self {
        let terms = terms.iter().filter(|(_, bytes)| bytes.0 > 0);
        let terms: Vec<_> = terms.map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        Self { peak: terms.iter().map(|(_, bytes)| *bytes).sum(), terms }
    }

    /// Returns the estimate of the phase with the highest peak.
    pub(crate) fn highest(phases: &[Terms]) -> Self {
        let estimates = phases.iter().map(|terms| Self::of(terms));
        estimates.max_by_key(|estimate| estimate.peak).unwrap_or_else(|| Self::of(&[]))
    }

    /// Returns the memory that an offer must have: the peak and the default margin.
    #[must_use]
    pub fn needed(&self) -> Bytes {
        with_margin(self.peak)
    }

    /// Returns the terms as text, largest first: `base 61.0 MiB, activations 1.2 GiB`.
    #[must_use]
    pub fn breakdown(&self) -> String {
        let mut terms: Vec<_> = self.terms.iter().collect();
        terms.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        terms.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect::<Vec<_>>().join(", ")
    }
}
