//! Reasons why an offer is not used.

use std::fmt;

use crate::{bytes::Bytes, serve::Engine};

/// The reason why an offer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The total memory is too small, even if the machine is idle.
    TooSmall {
        /// The offer's name.
        offer: String,
        /// The missing memory.
        short_by: Bytes,
    },
    /// Too much of the memory is reserved now; it will be free again.
    Crowded {
        /// The offer's name.
        offer: String,
        /// The missing free memory.
        short_by: Bytes,
    },
    /// All slots for runs are in use now.
    NoSlot {
        /// The offer's name.
        offer: String,
    },
    /// This build has no code for the offer's device.
    Device {
        /// The offer's name.
        offer: String,
        /// The kind of device.
        device: &'static str,
    },
    /// The offer has several GPUs, over which this build cannot distribute a model.
    Sharded {
        /// The offer's name.
        offer: String,
        /// The number of GPUs.
        gpus: u32,
    },
    /// The offer has no GPU, which the engine of a replica requires.
    NoGpu {
        /// The offer's name.
        offer: String,
        /// The engine.
        engine: Engine,
    },
    /// The offer has another device than the requested ones.
    OtherDevice {
        /// The offer's name.
        offer: String,
        /// The offer's device.
        device: String,
        /// The field that limits the devices, with its value: `compute.device is cpu`.
        requested: String,
    },
    /// An hour costs more than the limit.
    Price {
        /// The offer's name.
        offer: String,
        /// The price of an hour, in millionths of a US dollar.
        micro_usd_per_hour: u64,
        /// The limit.
        most: u64,
    },
    /// The price is unknown now.
    NoPrice {
        /// The offer's name.
        offer: String,
        /// The human-readable reason.
        reason: String,
        /// `true` if this build cannot use the offer at any price.
        is_final: bool,
    },
    /// The offer is not in a requested region.
    Region {
        /// The offer's name.
        offer: String,
        /// The offer's region; `None`: it has none.
        region: Option<String>,
        /// The requested regions.
        requested: String,
    },
    /// The provider may reclaim the machine, and the job does not allow that.
    Spot {
        /// The offer's name.
        offer: String,
    },
    /// The predicted cost of the job is above the limit.
    Cost {
        /// The offer's name.
        offer: String,
        /// The predicted cost, in millionths of a US dollar.
        micro_usd: u64,
        /// The limit.
        most: u64,
    },
    /// The job would probably end after its deadline.
    Deadline {
        /// The offer's name.
        offer: String,
        /// The seconds between the deadline and the predicted end.
        late_by: u64,
    },
}

impl Refusal {
    /// Returns whether waiting cannot help.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Crowded { .. } | Self::NoSlot { .. } => false,
            Self::NoPrice { is_final, .. } => *is_final,
            _ => true,
        }
    }

    /// Returns whether the reason is a lack of memory.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        matches!(self, Self::TooSmall { .. } | Self::Crowded { .. })
    }

    /// Returns the reason's code in the API.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "too_small",
            Self::Crowded { .. } => "crowded",
            Self::NoSlot { .. } => "no_slot",
            Self::Device { .. } => "device_not_in_build",
            Self::Sharded { .. } => "sharding_not_in_build",
            Self::NoGpu { .. } => "no_gpu",
            Self::OtherDevice { .. } => "other_device",
            Self::Price { .. } => "price",
            Self::NoPrice { .. } => "no_price",
            Self::Region { .. } => "region",
            Self::Spot { .. } => "spot",
            Self::Cost { .. } => "cost",
            Self::Deadline { .. } => "deadline",
        }
    }

    /// Returns the offer's name.
    #[must_use]
    pub fn offer(&self) -> &str {
        match self {
            Self::TooSmall { offer, .. }
            | Self::Crowded { offer, .. }
            | Self::NoSlot { offer }
            | Self::Device { offer, .. }
            | Self::Sharded { offer, .. }
            | Self::NoGpu { offer, .. }
            | Self::OtherDevice { offer, .. }
            | Self::Price { offer, .. }
            | Self::NoPrice { offer, .. }
            | Self::Region { offer, .. }
            | Self::Spot { offer }
            | Self::Cost { offer, .. }
            | Self::Deadline { offer, .. } => offer,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { offer, short_by } => write!(f, "{offer} has {short_by} too little memory"),
            Self::Crowded { offer, short_by } => write!(f, "{offer} has {short_by} too little memory free"),
            Self::NoSlot { offer } => write!(f, "{offer} has no free slot for another run"),
            Self::Device { offer, device } => write!(f, "{offer}: the device {device} is not in this build"),
            Self::Sharded { offer, gpus } => write!(f, "{offer} has {gpus} GPUs: this build cannot shard"),
            Self::NoGpu { offer, engine } => write!(f, "{offer} has no GPU, which {} requires", engine.in_words()),
            Self::OtherDevice { offer, device, requested } => {
                write!(f, "{offer} has the device {device}, and {requested}")
            }
            Self::Price { offer, micro_usd_per_hour, most } => write!(
                f,
                "{offer} costs {:.6} USD per hour, above compute.max_usd_per_hour, {:.6}",
                usd(*micro_usd_per_hour),
                usd(*most)
            ),
            Self::NoPrice { offer, reason, .. } => write!(f, "{offer} has no price now: {reason}"),
            Self::Region { offer, region: Some(region), requested } => {
                write!(f, "{offer} is in the region {region}, and compute.regions is {requested}")
            }
            Self::Region { offer, region: None, requested } => {
                write!(f, "{offer} has no region, and compute.regions is {requested}")
            }
            Self::Spot { offer } => write!(f, "{offer} is a spot machine, and compute.spot is false"),
            Self::Cost { offer, micro_usd, most } => write!(
                f,
                "on {offer} the job would cost about {:.6} USD, above compute.max_usd, {:.6}",
                usd(*micro_usd),
                usd(*most)
            ),
            Self::Deadline { offer, late_by } => {
                write!(f, "on {offer} the job would end about {late_by} s after compute.deadline")
            }
        }
    }
}

fn usd(micro_usd: u64) -> f64 {
    micro_usd as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_offer_and_only_room_and_prices_come_back() {
        let offer = || "a".to_owned();
        let all = [
            (Refusal::TooSmall { offer: offer(), short_by: Bytes(1) }, "too_small"),
            (Refusal::Crowded { offer: offer(), short_by: Bytes(1) }, "crowded"),
            (Refusal::NoSlot { offer: offer() }, "no_slot"),
            (Refusal::Device { offer: offer(), device: "cuda" }, "device_not_in_build"),
            (Refusal::Sharded { offer: offer(), gpus: 2 }, "sharding_not_in_build"),
            (Refusal::NoGpu { offer: offer(), engine: Engine::Vllm }, "no_gpu"),
            (
                Refusal::OtherDevice { offer: offer(), device: "cpu".into(), requested: "device is cuda".into() },
                "other_device",
            ),
            (Refusal::Price { offer: offer(), micro_usd_per_hour: 2, most: 1 }, "price"),
            (Refusal::NoPrice { offer: offer(), reason: "stale".into(), is_final: false }, "no_price"),
            (Refusal::Region { offer: offer(), region: None, requested: "eu".into() }, "region"),
            (Refusal::Region { offer: offer(), region: Some("us".into()), requested: "eu".into() }, "region"),
            (Refusal::Spot { offer: offer() }, "spot"),
            (Refusal::Cost { offer: offer(), micro_usd: 2, most: 1 }, "cost"),
            (Refusal::Deadline { offer: offer(), late_by: 5 }, "deadline"),
        ];
        for (refusal, code) in all {
            assert_eq!((refusal.code(), refusal.offer()), (code, "a"));
            let words = refusal.to_string();
            assert!(words.starts_with('a') || words.starts_with("on a "), "{words}");
            assert_eq!(refusal.is_final(), !["crowded", "no_slot", "no_price"].contains(&code), "{code}");
        }
    }
}
