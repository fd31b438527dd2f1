//! The limits that a job sets on the offers for it, and their check against an offer.

use serde::{Deserialize, Serialize};

use super::{
    kind::{Offer, OfferDevice},
    refusal::Refusal,
};

/// The devices that a job allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// Any device of this build.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// Any NVIDIA GPU.
    Cuda,
    /// NVIDIA GPUs of one of these products; never empty.
    Products(Vec<String>),
}

impl DeviceChoice {
    fn allows(&self, device: &OfferDevice) -> bool {
        match (self, device) {
            (Self::Auto, _) | (Self::Cpu, OfferDevice::Cpu) | (Self::Cuda, OfferDevice::Cuda { .. }) => true,
            (Self::Products(products), OfferDevice::Cuda { product, .. }) => products.contains(product),
            _ => false,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Cpu => "cpu".into(),
            Self::Cuda => "cuda".into(),
            Self::Products(products) => products.join(", "),
        }
    }
}

/// The limits of a job on its offer. The default allows every offer but spot machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComputeLimits {
    /// The maximum price of an hour, in millionths of a US dollar.
    pub max_micro_usd_per_hour: Option<u64>,
    /// The maximum predicted cost of the job, in millionths of a US dollar.
    pub max_micro_usd: Option<u64>,
    /// The time by which the job must probably end, in Unix seconds.
    pub deadline: Option<i64>,
    /// `true` if the provider may reclaim the machine.
    pub spot: bool,
    /// The allowed regions; empty: any.
    pub regions: Vec<String>,
    /// The allowed devices.
    pub device: DeviceChoice,
}

impl ComputeLimits {
    /// Returns the limits of a job that began: its predicted cost and end count only before the first start, so that
    /// no job fails for them on its way.
    #[must_use]
    pub fn once_begun(self) -> Self {
        Self { max_micro_usd: None, deadline: None, ..self }
    }

    /// Returns whether the check depends on the duration of the job.
    #[must_use]
    pub const fn depend_on_duration(&self) -> bool {
        self.max_micro_usd.is_some() || self.deadline.is_some()
    }

    /// Returns the reason why the offer is not allowed, whatever the duration of the job; `None`: it is.
    #[must_use]
    pub fn refusal(&self, offer: &Offer) -> Option<Refusal> {
        let name = || offer.name.clone();
        if !self.device.allows(&offer.device) {
            let device = offer.device.words().to_owned();
            let requested = format!("compute.device is {}", self.device.words());
            return Some(Refusal::OtherDevice { offer: name(), device, requested });
        }
        if offer.spot && !self.spot {
            return Some(Refusal::Spot { offer: name() });
        }
        if !self.regions.is_empty() && !offer.region.as_ref().is_some_and(|region| self.regions.contains(region)) {
            let requested = self.regions.join(", ");
            return Some(Refusal::Region { offer: name(), region: offer.region.clone(), requested });
        }
        let most = self.max_micro_usd_per_hour.filter(|most| offer.micro_usd_per_hour > *most)?;
        Some(Refusal::Price { offer: name(), micro_usd_per_hour: offer.micro_usd_per_hour, most })
    }

    /// Returns the reason why a job that runs from `now` (Unix seconds) for `seconds` may not use the offer.
    #[must_use]
    pub fn refusal_for(&self, offer: &Offer, seconds: f64, now: f64) -> Option<Refusal> {
        let micro_usd = offer.micro_usd_for(seconds);
        if let Some(most) = self.max_micro_usd.filter(|most| micro_usd > *most) {
            return Some(Refusal::Cost { offer: offer.name.clone(), micro_usd, most });
        }
        let late_by = now + seconds - self.deadline? as f64;
        (late_by > 0.0).then(|| Refusal::Deadline { offer: offer.name.clone(), late_by: late_by.ceil() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

    fn offer() -> Offer {
        let region = Some("eu-west-1".into());
        Offer { micro_usd_per_hour: 2_000_000, region, ..Offer::cpu("cloud", "node", Bytes::mib(1000), 4) }
    }

    fn l4() -> Offer {
        let device = OfferDevice::Cuda { product: "NVIDIA L4".into(), count: 1, memory: Bytes::mib(23_034) };
        Offer { device, ..offer() }
    }

    #[test]
    fn each_limit_refuses_with_its_figures() {
        let any = ComputeLimits::default;
        let spot = Offer { spot: true, ..offer() };
        let homeless = Offer { region: None, ..offer() };
        let eu = || ComputeLimits { regions: vec!["eu-north-1".into()], ..any() };
        let device = |device| ComputeLimits { device, ..any() };
        let products = || device(DeviceChoice::Products(vec!["NVIDIA H100".into(), "NVIDIA A100".into()]));
        let cheap = ComputeLimits { max_micro_usd_per_hour: Some(1_999_999), ..any() };
        for (limits, offer, words) in [
            (cheap, offer(), "node costs 2.000000 USD per hour, above compute.max_usd_per_hour, 1.999999"),
            (any(), spot, "node is a spot machine, and compute.spot is false"),
            (eu(), offer(), "node is in the region eu-west-1, and compute.regions is eu-north-1"),
            (eu(), homeless, "node has no region, and compute.regions is eu-north-1"),
            (device(DeviceChoice::Cuda), offer(), "node has the device cpu, and compute.device is cuda"),
            (device(DeviceChoice::Cpu), l4(), "node has the device NVIDIA L4, and compute.device is cpu"),
            (products(), l4(), "node has the device NVIDIA L4, and compute.device is NVIDIA H100, NVIDIA A100"),
        ] {
            assert_eq!(limits.refusal(&offer).unwrap().to_string(), words);
        }
    }

    #[test]
    fn what_is_within_the_limits_is_allowed() {
        let exact = ComputeLimits {
            max_micro_usd_per_hour: Some(2_000_000),
            spot: true,
            regions: vec!["eu-west-1".into()],
            device: DeviceChoice::Products(vec!["NVIDIA L4".into()]),
            ..ComputeLimits::default()
        };
        assert_eq!(exact.refusal(&Offer { spot: true, ..l4() }), None);
        assert_eq!(ComputeLimits::default().refusal(&offer()), None);
        assert_eq!(ComputeLimits { device: DeviceChoice::Cuda, ..ComputeLimits::default() }.refusal(&l4()), None);
    }

    #[test]
    fn the_cost_and_the_end_of_the_job_are_limited_before_it_begins() {
        let limits = ComputeLimits { max_micro_usd: Some(1_000_000), deadline: Some(5000), ..ComputeLimits::default() };
        assert_eq!(limits.refusal_for(&offer(), 1800.0, 3200.0), None);
        let dear = limits.refusal_for(&offer(), 1801.0, 0.0).unwrap();
        assert_eq!(dear.to_string(), "on node the job would cost about 1.000556 USD, above compute.max_usd, 1.000000");
        let late = limits.refusal_for(&offer(), 1800.0, 3210.5).unwrap();
        assert_eq!(late, Refusal::Deadline { offer: "node".into(), late_by: 11 });
        assert!(limits.depend_on_duration());
        let begun = limits.once_begun();
        assert_eq!(begun.refusal_for(&offer(), 1e9, 1e9), None);
        assert!(!begun.depend_on_duration());
    }

    #[test]
    fn stored_limits_are_read_again() {
        let limits = ComputeLimits {
            max_micro_usd: Some(5),
            device: DeviceChoice::Products(vec!["NVIDIA L4".into()]),
            ..ComputeLimits::default()
        };
        let stored = serde_json::to_value(&limits).unwrap();
        assert_eq!(serde_json::from_value::<ComputeLimits>(stored).unwrap(), limits);
        assert_eq!(serde_json::from_str::<ComputeLimits>("{}").unwrap(), ComputeLimits::default());
    }
}
