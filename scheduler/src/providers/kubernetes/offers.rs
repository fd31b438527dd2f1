//! The offers of the cluster.

use attune_domain::offer::Offer;

use crate::{config::kubernetes::KubernetesOffer, providers::slots::slots};

impl KubernetesOffer {
    /// Returns an offer for each slot.
    pub(super) fn slots(&self, provider: &str) -> impl Iterator<Item = Offer> + use<> {
        let offer = Offer { no_price: self.no_price.clone(), ..self.settings().offer(provider) };
        slots(offer, self.slots)
    }
}
