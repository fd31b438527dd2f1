//! The outcome of one batch of a sweep, as each kind's sweeper returns it.

/// The outcome of one batch of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// The rows, or objects, that were deleted.
    pub gone: u64,
    /// There may be more that is due.
    pub has_more: bool,
}
