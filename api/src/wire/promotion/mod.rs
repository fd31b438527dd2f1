//! The promotion of adapter versions: canaries, shadows, and the traffic of versions.

/// Canaries of aliases.
pub mod canary;
/// The traffic of versions.
pub mod metrics;
/// Shadows of aliases.
pub mod shadow;
