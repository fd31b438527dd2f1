//! Events on their way to users' endpoints: signed, sent, tried again. The rows decide (`store::webhook_queue`).

/// What follows from an answer: the table of delays.
mod verdict;

/// What is sent, and its signature.
mod message;

/// The loop that sends.
mod deliver;

pub(crate) use deliver::{Sender, deliver};
