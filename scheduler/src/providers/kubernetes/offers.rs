//! The offers of the cluster. Each slot is an offer of its own: a pod does not share its memory with others.

use attune_domain::{
    bytes::Bytes,
    offer::{Offer, OfferDevice},
};

use crate::config::kubernetes::{Gpu, KubernetesOffer};

impl KubernetesOffer {
    /// Returns whether `name` is that of one of its slots.
    pub(super) fn is_named(&self, name: &str) -> bool {
        name == self.name || name.rsplit_once('/').is_some_and(|(offer, _)| offer == self.name)
    }

    /// Returns an offer for each slot.
    pub(super) fn slots(&self, provider: &str) -> impl Iterator<Item = Offer> {
        (1..=self.slots).map(move |slot| Offer {
            provider: provider.to_owned(),
            name: if self.slots == 1 { self.name.clone() } else { format!("{}/{slot}", self.name) },
            memory: self.memory(),
            reserved: Bytes(0),
            free_slots: 1,
            threads: self.threads,
            micro_usd_per_hour: self.micro_usd_per_hour(),
            device: self.gpu.as_ref().map_or(OfferDevice::Cpu, Gpu::device),
            spot: self.spot,
            region: self.region.clone(),
        })
    }
}

impl Gpu {
    fn device(&self) -> OfferDevice {
        OfferDevice::Cuda { product: self.product.clone(), count: self.count, memory: Bytes(self.memory_bytes) }
    }
}
