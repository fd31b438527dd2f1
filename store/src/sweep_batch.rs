//! The outcome of one batch of a sweep, as each kind's sweeper returns it.

/// The outcome of one batch of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// The number of deleted rows or objects.
    pub gone: u64,
    /// True if more may be due.
    pub has_more: bool,
}
