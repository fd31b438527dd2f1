//! Webhooks: events signed, sent and retried. The rows decide (`store::webhooks::webhook_queue`).

/// The outcome of an attempt: the retry schedule.
mod verdict;

/// The body and its signature.
mod message;

/// The delivery loop.
mod deliver;

pub(crate) use deliver::{Sender, deliver};
