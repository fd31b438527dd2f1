//! Memory budgets: memory is reserved before it is used, and released when the reservation is dropped.

/// Adapters in memory, and their leases.
pub mod lease;
/// The reasons why an adapter cannot be loaded.
pub mod load_error;
/// The load of an adapter.
pub mod loader;
pub(crate) mod turns;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use attune_domain::bytes::Bytes;
use tokio::sync::Notify;

/// A memory budget that several threads share.
#[derive(Debug, Clone)]
pub struct ResidentBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    used: AtomicU64,
    freed: Arc<Notify>,
}

/// A reserved part of a budget. Dropping it releases the part.
#[derive(Debug)]
pub struct Reservation {
    from: Arc<Inner>,
    bytes: u64,
}

impl ResidentBudget {
    /// Creates a budget with nothing reserved.
    #[must_use]
    pub fn new(total: Bytes) -> Self {
        Self(Arc::new(Inner { total: total.0, used: AtomicU64::new(0), freed: Arc::default() }))
    }

    /// Returns the budget's size.
    #[must_use]
    pub fn total(&self) -> Bytes {
        Bytes(self.0.total)
    }

    /// Returns the bytes that are reserved at the moment.
    #[must_use]
    pub fn used(&self) -> Bytes {
        Bytes(self.0.used.load(Ordering::Acquire))
    }

    /// Returns the notification of released reservations.
    #[must_use]
    pub fn freed(&self) -> Arc<Notify> {
        self.0.freed.clone()
    }

    /// Reserves `part`. Returns `None` if not enough is left.
    #[must_use]
    pub fn reserve(&self, part: Bytes) -> Option<Reservation> {
        let mut reservation = Reservation { from: self.0.clone(), bytes: 0 };
        reservation.grow(part).then_some(reservation)
    }
}

impl Reservation {
    /// Extends the reservation by `more`. Returns `false`, without a change, if not enough is left.
    pub fn grow(&mut self, more: Bytes) -> bool {
        let fits = |used: u64| used.checked_add(more.0).filter(|sum| *sum <= self.from.total);
        let taken = self.from.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        if taken {
            self.bytes += more.0;
        }
        taken
    }

    /// Returns the reservation's size.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        Bytes(self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.from.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.from.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_part_that_is_too_large_takes_nothing() {
        let budget = ResidentBudget::new(Bytes(10));
        let mut held = budget.reserve(Bytes(6)).unwrap();
        assert!(budget.reserve(Bytes(5)).is_none());
        assert!(!held.grow(Bytes(5)));
        assert!(!held.grow(Bytes(u64::MAX)));
        assert_eq!((budget.used(), held.bytes()), (Bytes(6), Bytes(6)));
    }

    proptest! {
        #[test]
        fn what_is_used_is_what_is_held(wishes in vec((0..40u64, any::<bool>()), 0..60)) {
            let budget = ResidentBudget::new(Bytes(100));
            let mut held = Vec::new();
            for (part, give_back) in wishes {
                held.extend(budget.reserve(Bytes(part)));
                if give_back {
                    held.pop();
                }
                let sum: Bytes = held.iter().map(Reservation::bytes).sum();
                prop_assert_eq!(budget.used(), sum);
                prop_assert!(sum <= budget.total());
            }
            drop(held);
            prop_assert_eq!(budget.used(), Bytes(0));
        }
    }
}
