//! Virtual token counters: the work done for each holder, in priced tokens.
//!
//! A holder that returns after a pause continues at its own count, but not below that of the least served active one:
//! idle time gives no credit, and a pause cancels no debt. While none is active, the least count stays that of the last
//! ones that were. Source: Sheng et al., "Fairness in Serving Large Language Models", arXiv:2401.00588, Algorithm 2,
//! whose clients are active while they have waiting requests; here also while they have running ones.

use std::collections::BTreeMap;

/// The price of a processed prompt token. Source: `w_p` in the evaluation of arXiv:2401.00588.
pub(crate) const INPUT_PRICE: u64 = 1;
/// The price of a sampled token. Source: `w_q` in the evaluation of arXiv:2401.00588.
pub(crate) const OUTPUT_PRICE: u64 = 2;

/// The counters of several holders.
pub(crate) struct Counters<K> {
    served: BTreeMap<K, u64>,
    /// The least count of an active holder.
    floor: u64,
}

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self { served: BTreeMap::new(), floor: 0 }
    }
}

impl<K: Ord + Clone> Counters<K> {
    /// Returns a holder's count.
    pub(crate) fn served(&self, holder: &K) -> u64 {
        self.served.get(holder).copied().unwrap_or(self.floor)
    }

    /// Adds to a holder's count.
    pub(crate) fn charge(&mut self, holder: &K, price: u64) {
        let served = self.served(holder) + price;
        self.served.insert(holder.clone(), served);
    }

    /// Lifts the count of a holder that becomes active. The count of one that is active does not change.
    pub(crate) fn lift(&mut self, holder: &K) {
        let served = self.served(holder).max(self.floor);
        self.served.insert(holder.clone(), served);
    }

    /// Determines the least count of the active holders, and drops the counts of idle ones that would be lifted to it.
    pub(crate) fn settle(&mut self, is_active: impl Fn(&K) -> bool) {
        let active = self.served.iter().filter(|(holder, _)| is_active(holder));
        self.floor = active.map(|(_, served)| *served).min().unwrap_or(self.floor);
        let floor = self.floor;
        self.served.retain(|holder, served| *served > floor || is_active(holder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_gives_no_credit_and_cancels_no_debt() {
        let mut counters = Counters::default();
        counters.lift(&"a");
        counters.charge(&"a", 100);
        counters.settle(|_| true);
        counters.lift(&"b"); // new: begins at the least active count
        assert_eq!(counters.served(&"b"), 100);
        counters.charge(&"b", 500);
        counters.charge(&"a", 50);
        counters.settle(|holder| *holder == "a"); // b pauses
        counters.lift(&"b");
        assert_eq!((counters.served(&"a"), counters.served(&"b")), (150, 600));
        counters.settle(|holder| *holder == "a");
        counters.charge(&"a", 1000);
        counters.settle(|holder| *holder == "a"); // b's count is below the least active one, and dropped
        assert_eq!(counters.served.len(), 1);
        counters.lift(&"b");
        assert_eq!(counters.served(&"b"), 1150);
    }

    #[test]
    fn while_none_is_active_the_least_count_stays() {
        let mut counters = Counters::default();
        counters.lift(&1);
        counters.charge(&1, 70);
        counters.settle(|_| true);
        counters.settle(|_| false);
        counters.lift(&2);
        assert_eq!(counters.served(&2), 70);
    }
}
