//! An offer.

use crate::bytes::Bytes;

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
        }
    }

    /// Returns the free memory.
    #[must_use]
    pub const fn free(&self) -> Bytes {
        self.memory.saturating_sub(self.reserved)
    }

    /// Returns the key by which the offer to use is the smallest: the cheaper one, then the one with less memory.
    #[must_use]
    pub const fn preference(&self) -> (u64, Bytes) {
        (self.micro_usd_per_hour, self.memory)
    }
}
