//! The settings that the offers of all clusters have, and their checks.

use std::collections::HashSet;

use attune_domain::{
    bytes::Bytes,
    offer::{Offer, OfferDevice},
};
use serde::Deserialize;

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
    /// The price of an hour of a run, in US dollars; `None`: it is not set.
    pub(crate) usd_per_hour: Option<f64>,
    /// The GPUs of a slot.
    pub(crate) gpu: Option<&'a Gpu>,
    /// `true` if the machines may be reclaimed at any time.
    pub(crate) spot: bool,
    /// The region of the machines.
    pub(crate) region: Option<&'a str>,
}

/// The GPUs of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    /// The product, as the node's label `nvidia.com/gpu.product` of Kubernetes has it.
    pub(crate) product: String,
    /// The number of GPUs, or of MIG instances.
    #[serde(default = "one")]
    pub(crate) count: u32,
    /// The memory of one, in bytes.
    pub(crate) memory_bytes: u64,
    /// The extended resource of Kubernetes, such as `nvidia.com/mig-1g.10gb`.
    #[serde(default = "whole_gpu")]
    pub(crate) resource: String,
}

const fn one() -> u32 {
    1
}

/// Returns the extended resource of a whole GPU.
pub(crate) fn whole_gpu() -> String {
    "nvidia.com/gpu".into()
}

impl Gpu {
    fn check(&self) -> Result<(), String> {
        if self.product.is_empty() {
            return Err("gpu.product: use at least one character".into());
        }
        if self.count == 0 {
            return Err("gpu.count: 0 is below 1".into());
        }
        check_memory("gpu.memory_bytes", self.memory_bytes)?;
        if !self.resource.contains('/') {
            return Err(format!("gpu.resource: `{}` has no `/`. Example: nvidia.com/mig-1g.10gb", self.resource));
        }
        Ok(())
    }

    fn device(&self) -> OfferDevice {
        OfferDevice::Cuda { product: self.product.clone(), count: self.count, memory: Bytes(self.memory_bytes) }
    }
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
        let usd = self.usd_per_hour.unwrap_or(0.0);
        check_price("usd_per_hour", usd)?;
        self.gpu.map_or(Ok(()), Gpu::check)
    }

    /// Checks that machines of a cloud have a price. Own machines may have none, those with a region only if the
    /// configuration says so.
    ///
    /// # Errors
    /// The key, and the reason why it needs a value.
    pub(crate) fn check_cloud_price(&self) -> Result<(), String> {
        match (self.spot, self.region, self.usd_per_hour) {
            (true, _, Some(0.0) | None) => Err("usd_per_hour: 0 is no price of a spot machine. Set its price.".into()),
            (false, Some(region), None) => Err(format!(
                "usd_per_hour: there is no price for the region {region}. Set it; 0 for machines of your own."
            )),
            _ => Ok(()),
        }
    }

    /// Returns the offer of a slot.
    pub(crate) fn offer(&self, provider: &str) -> Offer {
        let (memory, threads) = (Bytes(self.memory_bytes.unwrap_or(0)), self.threads.unwrap_or(0));
        Offer {
            micro_usd_per_hour: self.micro_usd_per_hour(),
            device: self.gpu.map_or(OfferDevice::Cpu, Gpu::device),
            spot: self.spot,
            region: self.region.map(str::to_owned),
            ..Offer::cpu(provider, self.name, memory, threads)
        }
    }

    /// Returns the price of an hour in millionths of a US dollar.
    pub(crate) fn micro_usd_per_hour(&self) -> u64 {
        micro_usd(self.usd_per_hour.unwrap_or(0.0))
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

    const VALID: OfferSettings<'static> = OfferSettings {
        name: "a100",
        memory_bytes: Some(1 << 20),
        threads: Some(1),
        slots: 64,
        usd_per_hour: Some(1e9),
        gpu: None,
        spot: false,
        region: None,
    };

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
        let unknown = OfferSettings { usd_per_hour: Some(f64::NAN), ..VALID };
        assert_eq!(refused(unknown), "usd_per_hour: NaN is not from 0 to 1000000000");
        let gpu = Gpu { product: String::new(), count: 1, memory_bytes: 1 << 30, resource: whole_gpu() };
        let nameless = OfferSettings { gpu: Some(&gpu), ..VALID };
        assert_eq!(refused(nameless), "gpu.product: use at least one character");
    }

    #[test]
    fn a_machine_of_a_cloud_without_a_price_is_refused() {
        let with =
            |spot, region, usd_per_hour| OfferSettings { spot, region, usd_per_hour, ..VALID }.check_cloud_price();
        let spot = "usd_per_hour: 0 is no price of a spot machine. Set its price.";
        assert_eq!((with(true, None, None), with(true, Some("eu"), Some(0.0))), (Err(spot.into()), Err(spot.into())));
        assert_eq!(with(true, None, Some(0.1)), Ok(()));
        let region =
            "usd_per_hour: there is no price for the region eu. Set it; 0 for machines of your own.".to_owned();
        assert_eq!((with(false, Some("eu"), None), with(false, Some("eu"), Some(0.0))), (Err(region), Ok(())));
        assert_eq!(with(false, None, None), Ok(()), "own machines");
    }

    #[test]
    fn an_offer_has_its_device_region_and_price() {
        let gpu = Gpu { product: "A".into(), count: 2, memory_bytes: 1 << 30, resource: whole_gpu() };
        let settings =
            OfferSettings { gpu: Some(&gpu), spot: true, region: Some("eu"), usd_per_hour: Some(0.5), ..VALID };
        let offer = settings.offer("slurm");
        let device = OfferDevice::Cuda { product: "A".into(), count: 2, memory: Bytes(1 << 30) };
        assert_eq!((offer.device, offer.region.as_deref(), offer.spot), (device, Some("eu"), true));
        assert_eq!((offer.memory, offer.threads, offer.micro_usd_per_hour), (Bytes(1 << 20), 1, 500_000));
        assert_eq!(VALID.offer("slurm").device, OfferDevice::Cpu);
    }

    #[test]
    fn a_price_is_rounded_to_millionths() {
        assert_eq!((micro_usd(1.8), micro_usd(0.000_000_4), micro_usd(0.0)), (1_800_000, 0, 0));
    }
}
