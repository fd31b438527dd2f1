//! What every handler has at hand.

use std::sync::Arc;

use attune_store::objects::Objects;
use sqlx::PgPool;

use crate::config::{Limits, Serving};

/// The parts of the platform that a handler reaches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// Rows.
    pub db: PgPool,
    /// Content.
    pub objects: Objects,
    /// For requests to replicas.
    pub http: reqwest::Client,
    /// How much is taken.
    pub limits: Arc<Limits>,
    /// Chat.
    pub serving: Arc<Serving>,
}
