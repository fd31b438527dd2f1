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
    /// The bearer token that a caller must show.
    pub token: SecretString,
    /// The adapters.
    pub adapters: Adapters,
    /// The engine.
    pub engine: EngineHandle,
    /// The admission of requests.
    pub admission: Arc<Admission>,
    /// Requests that are being answered.
    pub requests: TaskTracker,
    /// The number of requests that are being answered.
    pub active: AtomicU64,
}
