//! An offer.

use crate::{bytes::Bytes, memory::Margin};

/// The device that trains on an offer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OfferDevice {
    /// The processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs of one product.
    Cuda {
        /// The product's name, such as `NVIDIA-H100-80GB-HBM3`.
        product: String,
        /// The number of GPUs.
        count: u32,
        /// The usable memory of one GPU.
        memory: Bytes,
    },
}

impl OfferDevice {
    /// Returns the name of the kind of device.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda { .. } => "cuda",
        }
    }

    /// Returns the device for messages: `cpu`, or the product of the GPUs.
    #[must_use]
    pub fn words(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda { product, .. } => product,
        }
    }
}

/// A kind of machine that a provider offers, and its free capacity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The provider's name.
    pub provider: String,
    /// The provider's name for the offer.
    pub name: String,
    /// The total memory.
    pub memory: Bytes,
    /// The memory that other runs and replicas have reserved now.
    pub reserved: Bytes,
    /// The number of additional runs that can start now.
    pub free_slots: usize,
    /// The number of CPU threads.
    pub threads: u32,
    /// The price in millionths of a US dollar per hour; 0: the user's own machine.
    pub micro_usd_per_hour: u64,
    /// The device that trains.
    pub device: OfferDevice,
    /// `true` if the provider may reclaim the machine at any time.
    pub spot: bool,
    /// The provider's name for the region; `None`: it has no regions.
    pub region: Option<String>,
    /// The human-readable reason why its price is unknown now, such as a stale entry of the catalogue: no run starts
    /// there until it is known. `None`: the price is known.
    pub no_price: Option<String>,
    /// The margin of predicted peaks on this kind of machine.
    pub margin: Margin,
}

impl Offer {
    /// Returns the offer of an idle machine without GPUs, for one run at a time and without a price.
    #[must_use]
    pub fn cpu(provider: impl Into<String>, name: impl Into<String>, memory: Bytes, threads: u32) -> Self {
        Self {
            provider: provider.into(),
            name: name.into(),
            memory,
            reserved: Bytes(0),
            free_slots: 1,
            threads,
            micro_usd_per_hour: 0,
            device: OfferDevice::Cpu,
            spot: false,
            region: None,
            no_price: None,
            margin: Margin::default(),
        }
    }

    /// Returns the free memory.
    #[must_use]
    pub const fn free(&self) -> Bytes {
        self.memory.saturating_sub(self.reserved)
    }

    /// Returns whether a run on the offer `name` of a provider was on this offer, or on another slot of it (`cpu/1`,
    /// `cpu/2`).
    #[must_use]
    pub fn is_same_kind(&self, provider: &str, name: &str) -> bool {
        self.provider == provider && kind(&self.name) == kind(name)
    }

    /// Returns the memory that a run needs on this offer, by its need with the default margin.
    #[must_use]
    pub fn needed(&self, need: Bytes) -> Bytes {
        self.margin.apply(need)
    }

    /// Returns whether the machine has enough memory when it is idle, for a run with this need with the default margin.
    #[must_use]
    pub fn is_large_enough(&self, need: Bytes) -> bool {
        self.memory >= self.needed(need)
    }

    /// Returns the price of the machine for some seconds, in millionths of a US dollar, rounded up.
    #[must_use]
    pub fn micro_usd_for(&self, seconds: f64) -> u64 {
        (self.micro_usd_per_hour as f64 * seconds / 3600.0).ceil() as u64
    }

    /// Returns the key by which the offer to use is the smallest: the cheaper one, then the one with less memory.
    #[must_use]
    pub const fn preference(&self) -> (u64, Bytes) {
        (self.micro_usd_per_hour, self.memory)
    }
}

/// Returns the name of an offer without the number of its slot.
fn kind(offer: &str) -> &str {
    offer.split_once('/').map_or(offer, |(kind, _)| kind)
}
