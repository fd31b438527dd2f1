//! The state that all requests of this process share.

use std::sync::{Arc, atomic::AtomicU64};

use secrecy::SecretString;
use tokio_util::task::TaskTracker;

use crate::{
    adapters::Adapters,
    decoding::{admission::Admission, engine::EngineHandle},
};

/// The state that all requests of this process share.
pub struct App {
    /// The bearer token that callers must send.
    pub token: SecretString,
    /// The adapters in memory and their loader.
    pub adapters: Adapters,
    /// The handle of the engine thread.
    pub engine: EngineHandle,
    /// The admission control of requests.
    pub admission: Arc<Admission>,
    /// The tasks of requests in progress.
    pub requests: TaskTracker,
    /// The number of requests in progress.
    pub active: AtomicU64,
}
