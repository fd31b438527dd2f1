//! Tests of the whole router: each has its own database and its own local issuer, and no object store unless it starts
//! one.

mod administration;
mod catalogue;
mod conditions;
mod deployments;
mod draft_models;
mod edges;
mod engines_and_pins;
mod forged;
mod idempotency;
mod issuer;
mod organizations;
mod promotion;
mod queue;
mod residency;
mod sign_in;
mod status;
mod walk;
mod world;
