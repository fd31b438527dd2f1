//! Tests over the whole router: each has a database of its own, an issuer of its own on this machine, and no object
//! store behind it.

mod administration;
mod conditions;
mod edges;
mod forged;
mod idempotency;
mod issuer;
mod organizations;
mod sign_in;
mod walk;
mod world;
