//! Webhook endpoints, events and deliveries.

/// Events that users can be told of outside.
pub mod outbox;
/// Secrets that must be read again.
pub mod seal;
/// What became of an event at an endpoint.
pub mod webhook_delivery;
/// Where projects want to be told of events.
pub mod webhook_endpoint;
/// How events get there: the scheduler's side.
pub mod webhook_queue;
