//! Tests against a real PostgreSQL: each has a database of its own, which `#[sqlx::test]` creates on the server of
//! DATABASE_URL (`scripts/test-postgres cargo test -p attune-store`).

mod adapter;
mod batch;
mod catalogue;
mod checkpoint_permission;
mod connection;
mod export;
mod gauges;
mod idempotency;
mod job;
mod leadership;
mod losses;
mod money;
mod objects;
mod outbox;
mod pausing;
mod pools;
mod promotion;
mod queue;
mod report;
mod row_security;
mod sweep;
mod tenant;
mod tokens;
mod training;
mod upload;
mod webhook;
