//! What every program of the platform needs, on either side of the walls: it ends with its parent, and its log never
//! holds it up.
//!
//! No network, no rows, no tensors here. Read in this order.

/// The end of a process when its parent is gone.
pub mod parent;

/// The log on standard error.
pub mod log;
