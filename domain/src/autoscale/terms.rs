//! The input and the result of a decision.

/// The bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The minimum number of replicas.
    pub min_replicas: u32,
    /// The maximum number of replicas.
    pub max_replicas: u32,
    /// The requests per replica.
    pub target_concurrency: u32,
    /// The seconds without a request after which a pool without a minimum has no replica any more.
    pub cooldown_seconds: u32,
}

/// The replicas of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replicas {
    /// Requested, launched or ready.
    pub current: u32,
    /// Ready.
    pub ready: u32,
    /// Seconds since the last request.
    pub idle_seconds: f64,
}

/// The mode of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Mode {
    /// From the stable window.
    Stable,
    /// From the panic window.
    Panic,
}

/// The reason of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// The load needs this number.
    Load,
    /// The load needs fewer, but did not for long enough.
    Stabilizing,
    /// The load needs more or fewer than one decision may change.
    Step,
    /// There is no load, and the cooldown has not passed.
    Cooldown,
    /// There was no request for the cooldown.
    Idle,
    /// The minimum is more than the load needs.
    Minimum,
    /// The maximum is less than the load needs.
    Maximum,
}

/// The wanted number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The number.
    pub replicas: u32,
    /// The mode.
    pub mode: Mode,
    /// The reason.
    pub reason: Reason,
}
