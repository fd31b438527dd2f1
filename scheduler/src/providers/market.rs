//! The offers of all providers at one moment, and the providers that did not answer.

use attune_domain::{bytes::Bytes, offer::Offer};
use attune_store::{
    error::StoreError,
    runs::{margins, node, offer},
};
use sqlx::PgConnection;

/// The number of characters of a provider's error that tenants read.
const MOST_REASON: usize = 300;

/// A provider's offers.
#[derive(Debug, Clone)]
pub(crate) struct ProviderOffers {
    /// The provider's name.
    pub(crate) provider: String,
    /// The offers, without reservations. Those of a provider that does not answer are the last known ones, and nothing
    /// of them is free.
    pub(crate) offers: Vec<Offer>,
    /// The reason why the provider did not answer; `None`: it did.
    pub(crate) unreachable: Option<String>,
}

impl ProviderOffers {
    /// Creates the offers of a provider that did not answer: of `known`, nothing is free.
    pub(crate) fn unreachable(provider: &str, mut known: Vec<Offer>, error: &str) -> Self {
        for offer in &mut known {
            (offer.reserved, offer.free_slots) = (offer.memory, 0);
        }
        let reason: String = error.chars().take(MOST_REASON).collect();
        let unreachable = Some(format!("provider {provider} cannot be reached: {reason}"));
        Self { provider: provider.to_owned(), offers: known, unreachable }
    }
}

/// The offers of all providers.
#[derive(Debug, Clone)]
pub(crate) struct Market(Vec<ProviderOffers>);

impl Market {
    /// Creates the market of these providers.
    pub(crate) const fn new(all: Vec<ProviderOffers>) -> Self {
        Self(all)
    }

    /// Returns all providers, with their offers.
    pub(crate) fn all(&self) -> &[ProviderOffers] {
        &self.0
    }

    /// Returns the providers that answered, with their offers.
    fn answered(&self) -> impl Iterator<Item = &ProviderOffers> {
        self.0.iter().filter(|provider| provider.unreachable.is_none())
    }

    /// Returns whether all providers answered. If not, a job that no offer can hold waits, and is not refused.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.iter().all(|provider| provider.unreachable.is_none())
    }

    /// Returns the reason why a job waits for a provider that does not answer; `None`: another one has an offer with as
    /// much memory as it needs, or all answered. `offers`: [`Self::offers`].
    pub(crate) fn waits_for_provider(&self, need: Bytes, offers: &[Offer]) -> Option<String> {
        if self.is_complete() {
            return None;
        }
        let has_answered = |offer: &&Offer| self.answered().any(|provider| provider.provider == offer.provider);
        if offers.iter().filter(has_answered).any(|offer| offer.is_large_enough(need)) {
            return None;
        }
        let reasons: Vec<&str> = self.0.iter().filter_map(|provider| provider.unreachable.as_deref()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Returns all offers, with their margins and what is reserved of them.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub(crate) async fn offers(&self, conn: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
        let mut all = Vec::new();
        let margins = margins::list(conn).await?;
        for ProviderOffers { provider, offers, .. } in &self.0 {
            let nodes = node::active(conn, provider).await?;
            all.extend(offers.iter().cloned().map(|mut offer| {
                offer::reserve(&mut offer, &nodes);
                offer.margin = margins.of(&offer);
                offer
            }));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(provider: &str, mib: u64) -> Vec<Offer> {
        vec![Offer::cpu(provider, "one", Bytes::mib(mib), 2)]
    }

    #[test]
    fn only_a_job_that_fits_nowhere_else_waits_for_a_provider_that_does_not_answer() {
        let near = ProviderOffers { provider: "near".into(), offers: offers("near", 100), unreachable: None };
        let far = ProviderOffers::unreachable("far", offers("far", 900), &"x".repeat(1000));
        assert_eq!((far.offers[0].free(), far.offers[0].free_slots), (Bytes(0), 0));
        let all = [near.offers.clone(), far.offers.clone()].concat();
        let market = Market::new(vec![near.clone(), far]);
        assert_eq!(market.waits_for_provider(Bytes::mib(100), &all), None);
        let reason = market.waits_for_provider(Bytes::mib(101), &all).unwrap();
        assert!(reason.starts_with("provider far cannot be reached: xxx") && reason.len() < 400, "{reason}");
        assert!(!market.is_complete() && market.answered().count() == 1);
        let whole = Market::new(vec![near]);
        assert_eq!((whole.waits_for_provider(Bytes::mib(101), &all[..1]), whole.is_complete()), (None, true));
    }
}
