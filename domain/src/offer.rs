//! Offers of node providers, and the selection of one for a run or a replica. Pure: the same input has the same result,
//! and a refusal has its reasons.

mod kind;
mod limits;
mod margin;
mod ranking;
mod refusal;
mod replica_kind;
mod select;

pub use kind::{Offer, OfferDevice};
pub use limits::{ComputeLimits, DeviceChoice};
pub use margin::{PastPeak, margin};
pub use ranking::{Ranking, Slowness, Terms, prospect};
pub use refusal::Refusal;
pub use replica_kind::{ReplicaDevice, ReplicaKind};
pub use select::{Decision, place, place_again, refusal, replica_refusal, right_size, right_size_replica, unsupported};
