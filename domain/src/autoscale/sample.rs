//! Samples of a pool's load.

/// The requests of a pool at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The time, in seconds of any clock that only moves forward.
    pub at: f64,
    /// The requests in progress and waiting.
    pub requests: f64,
    /// The number of ready replicas.
    pub ready: u32,
}
