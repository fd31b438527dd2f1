//! Replicas: serving processes. The row is created first and launched afterwards. The live replicas of a base in one
//! quantization are a pool, whose size the autoscaler decides; see [`crate::pools`].

mod end;
mod ensure;
mod events;
mod place;
mod report;
mod residency;
pub(crate) mod row;

pub use end::{drain, drain_outdated, end, end_if_idle, end_starting, end_unplaced};
pub use ensure::{claim_unpushed, ensure, ensure_for, start};
pub use place::{Placement, place, spec, want_again};
pub use report::take_report;
pub use residency::{ReplicaResidency, instruct, of_version};
pub use row::{Replica, ReplicaState, ServedBase, active, by_token, get, of_pool};
