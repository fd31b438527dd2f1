//! Webhook endpoints, events and deliveries.

/// The outbox: events written with the change that they report.
pub mod outbox;
/// Encryption of secrets that must be readable.
pub mod seal;
/// Deliveries of events to endpoints.
pub mod webhook_delivery;
/// Webhook endpoints.
pub mod webhook_endpoint;
/// The delivery queue: the scheduler's side.
pub mod webhook_queue;
