//! Tests of the whole router: each has its own database and its own local issuer, and no object store unless it starts
//! one.

mod administration;
mod catalogue;
mod conditions;
mod edges;
mod forged;
mod idempotency;
mod issuer;
mod organizations;
mod queue;
mod sign_in;
mod status;
mod walk;
mod world;
