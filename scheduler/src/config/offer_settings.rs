//! The settings that the offers of all clusters have, and their checks.

use std::collections::HashSet;

use attune_domain::bytes::Bytes;

/// The maximum number of slots of an offer.
pub(crate) const MOST_SLOTS: u32 = 64;

/// The settings of an offer of a cluster. Each of its slots is a machine of its own.
pub(crate) struct OfferSettings<'a> {
    /// The offer's name.
    pub(crate) name: &'a str,
    /// The memory of a slot, in bytes; `None`: it is that of an instance type.
    pub(crate) memory_bytes: Option<u64>,
    /// The CPU threads of a slot; `None`: they are those of an instance type.
    pub(crate) threads: Option<u32>,
    /// The maximum number of concurrent runs.
    pub(crate) slots: u32,
    /// The price of an hour of a run, in US dollars.
    pub(crate) usd_per_hour: f64,
}

impl OfferSettings<'_> {
    /// Checks the ranges of the values.
    ///
    /// # Errors
    /// The key, its value, and the allowed range.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.contains('/') {
            return Err("name: use at least one character, and no `/`".into());
        }
        self.memory_bytes.map_or(Ok(()), |bytes| check_memory("memory_bytes", bytes))?;
        if self.threads == Some(0) {
            return Err("threads: 0 is below 1".into());
        }
        if !(1..=MOST_SLOTS).contains(&self.slots) {
            return Err(format!("slots: {} is not from 1 to {MOST_SLOTS}", self.slots));
        }
        check_price("usd_per_hour", self.usd_per_hour)
    }
}

/// Checks that the offers of a provider are valid and have different names. `offers` has each name and its check.
///
/// # Errors
/// The provider, the offer, the key, its value, and the allowed range.
pub(crate) fn check_offers<'a>(
    provider: &str,
    offers: impl Iterator<Item = (&'a str, Result<(), String>)>,
) -> Result<(), String> {
    let mut names = HashSet::new();
    for (name, checked) in offers {
        if !names.insert(name) {
            return Err(format!("{provider}.offer: two have the name `{name}`. Set a different `name` in each."));
        }
        checked.map_err(|wrong| format!("{provider}.offer {name}: {wrong}"))?;
    }
    Ok(())
}

/// Checks an amount of memory.
///
/// # Errors
/// The key, its value, and the smallest value.
pub(crate) fn check_memory(key: &str, bytes: u64) -> Result<(), String> {
    match Bytes(bytes) < Bytes::mib(1) {
        true => Err(format!("{key}: {bytes} is below {}", Bytes::mib(1).0)),
        false => Ok(()),
    }
}

/// Checks a price in US dollars.
///
/// # Errors
/// The key, its value, and the allowed range.
pub(crate) fn check_price(key: &str, usd: f64) -> Result<(), String> {
    match (0.0..=1e9).contains(&usd) {
        true => Ok(()),
        false => Err(format!("{key}: {usd} is not from 0 to 1000000000")),
    }
}

/// Returns a price in millionths of a US dollar.
pub(crate) fn micro_usd(usd: f64) -> u64 {
    (usd * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: OfferSettings<'static> =
        OfferSettings { name: "a100", memory_bytes: Some(1 << 20), threads: Some(1), slots: 64, usd_per_hour: 1e9 };

    #[test]
    fn limit_each_value_out_of_range_is_named() {
        assert_eq!(VALID.check(), Ok(()));
        assert_eq!(OfferSettings { memory_bytes: None, threads: None, ..VALID }.check(), Ok(()));
        let refused = |offer: OfferSettings<'_>| offer.check().unwrap_err();
        let nameless = "name: use at least one character, and no `/`";
        assert_eq!(refused(OfferSettings { name: "", ..VALID }), nameless);
        assert_eq!(refused(OfferSettings { name: "a100/1", ..VALID }), nameless);
        let small = OfferSettings { memory_bytes: Some((1 << 20) - 1), ..VALID };
        assert_eq!(refused(small), "memory_bytes: 1048575 is below 1048576");
        assert_eq!(refused(OfferSettings { threads: Some(0), ..VALID }), "threads: 0 is below 1");
        assert_eq!(refused(OfferSettings { slots: 0, ..VALID }), "slots: 0 is not from 1 to 64");
        assert_eq!(refused(OfferSettings { slots: 65, ..VALID }), "slots: 65 is not from 1 to 64");
        let unknown = OfferSettings { usd_per_hour: f64::NAN, ..VALID };
        assert_eq!(refused(unknown), "usd_per_hour: NaN is not from 0 to 1000000000");
    }

    #[test]
    fn a_price_is_rounded_to_millionths() {
        assert_eq!((micro_usd(1.8), micro_usd(0.000_000_4), micro_usd(0.0)), (1_800_000, 0, 0));
    }
}
