//! The offers of the cluster.

use attune_domain::{
    bytes::Bytes,
    offer::{Offer, OfferDevice},
};

use crate::{
    config::kubernetes::{Gpu, KubernetesOffer},
    providers::slots::slots,
};

impl KubernetesOffer {
    /// Returns an offer for each slot.
    pub(super) fn slots(&self, provider: &str) -> impl Iterator<Item = Offer> + use<> {
        let offer = Offer {
            micro_usd_per_hour: self.micro_usd_per_hour(),
            device: self.gpu.as_ref().map_or(OfferDevice::Cpu, Gpu::device),
            spot: self.spot,
            region: self.region.clone(),
            ..Offer::cpu(provider, &self.name, self.memory(), self.threads)
        };
        slots(offer, self.slots)
    }
}

impl Gpu {
    fn device(&self) -> OfferDevice {
        OfferDevice::Cuda { product: self.product.clone(), count: self.count, memory: Bytes(self.memory_bytes) }
    }
}
