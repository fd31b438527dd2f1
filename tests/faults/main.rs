//! Faults at random moments: processes are killed and stopped, the database and the object store fail, and the
//! platform's invariants hold all the same. `scripts/faults` runs the long form; docs/FAULTS.md describes both.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod actions;
mod clock;
mod cluster;
mod controls;
mod disk;
mod facts;
mod fail_points;
mod guards;
mod invariants;
mod observe;
mod outages;
mod processes;
mod program;
mod proxy;
mod receiver;
mod rig;
mod schedule;
mod schedulers;
mod settings;
mod situations;
mod storm;
mod timing;
mod uploads;
mod users;
