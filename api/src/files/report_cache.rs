//! A cache of the last reports on datasets.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use attune_domain::{digest::Sha256, id::BaseModelId};
use attune_text::rows::RowPolicy;

use crate::wire::report::ReportView;

/// The number of reports that are cached.
const CAPACITY: usize = 64;

/// The content and the settings that determine a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportKey {
    /// The digest of the file's rows.
    pub rows_sha256: Sha256,
    /// The digest of the validation file's rows, if there is one.
    pub validation_sha256: Option<Sha256>,
    /// The base model whose tokens are counted, and the policy by which rows become tokens; `None` if no tokens are
    /// counted.
    pub counting: Option<(BaseModelId, RowPolicy)>,
}

/// The last reports, newest first.
#[derive(Debug, Default)]
pub struct ReportCache(Mutex<VecDeque<(ReportKey, ReportView)>>);

impl ReportCache {
    /// Returns the cached report of this key.
    pub fn find(&self, key: &ReportKey) -> Option<ReportView> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.iter().find(|(its, _)| its == key).map(|(_, report)| report.clone())
    }

    /// Caches a report, and drops the oldest one if the cache is full.
    pub fn insert(&self, key: ReportKey, report: ReportView) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.truncate(CAPACITY - 1);
        cached.push_front((key, report));
    }
}
