//! Offers that name an instance type of the catalogue: its memory, threads, GPUs, region and price.

use attune_domain::{
    bytes::Bytes,
    catalogue::{Catalogue, InstanceType, STALE_DAYS},
};

use super::{
    kubernetes::{INSTANCE_TYPE, KubernetesConfig, KubernetesOffer},
    offer_settings::{Gpu, whole_gpu},
};

impl KubernetesConfig {
    /// Returns a warning for each offer whose price is unknown now. It names the offer and the reason.
    pub(crate) fn unpriced(&self, catalogue: &Catalogue, now: i64) -> Vec<String> {
        let warning = |offer: &KubernetesOffer| {
            let reason = offer.filled(catalogue, now).no_price?;
            Some(format!("{}.offer {} has no price, so no run starts there: {reason}", self.name, offer.name))
        };
        self.offers.iter().filter_map(warning).collect()
    }
}

impl KubernetesOffer {
    /// Returns the offer with what the catalogue has for its instance type. Settings that it has stay. If the catalogue
    /// has no price for it now, `no_price` has the reason.
    pub(crate) fn filled(&self, catalogue: &Catalogue, now: i64) -> Self {
        let mut filled = self.clone();
        filled.no_price = fill(&mut filled, catalogue, now).err();
        filled
    }
}

/// Fills an offer that names an instance type.
///
/// # Errors
/// The reason why its size or its price is unknown now.
fn fill(offer: &mut KubernetesOffer, catalogue: &Catalogue, now: i64) -> Result<(), String> {
    let Some(name) = &offer.instance_type else { return Ok(()) };
    let entry = catalogue.named(name, offer.region.as_deref()).map_err(|wrong| wrong.to_string())?;
    if offer.memory_bytes == 0 {
        offer.memory_bytes = for_pods(Bytes::mib(entry.memory_mib).0);
    }
    if offer.threads == 0 {
        offer.threads = u32::try_from(for_pods(entry.vcpus.into())).unwrap_or(u32::MAX).max(1);
    }
    if offer.gpu.is_none() {
        let gpu = catalogue.gpu(&entry.gpu).ok_or_else(|| format!("gpu: the catalogue has no {}", entry.gpu))?;
        let (product, memory_bytes) = (entry.gpu.clone(), gpu.usable().0);
        offer.gpu = Some(Gpu { product, count: entry.gpus, memory_bytes, resource: whole_gpu() });
    }
    offer.node_selector.entry(INSTANCE_TYPE.into()).or_insert_with(|| entry.instance_type.clone());
    offer.region = Some(entry.region.clone());
    if offer.usd_per_hour.is_some() {
        return Ok(());
    }
    offer.usd_per_hour = Some(price(entry, offer.spot)?);
    if entry.fetched.is_stale(now) {
        let (id, date) = (entry.id(), entry.fetched);
        return Err(format!(
            "the price of {id} is stale: it is of {date}, more than {STALE_DAYS} days ago. Refresh the entry."
        ));
    }
    Ok(())
}

/// Returns nine tenths of a node's amount, as for discovered nodes: the rest is for what runs on every node.
const fn for_pods(amount: u64) -> u64 {
    amount / 10 * 9 + amount % 10 * 9 / 10
}

fn price(entry: &InstanceType, spot: bool) -> Result<f64, String> {
    match (spot, entry.spot_usd_per_hour) {
        (false, _) => Ok(entry.usd_per_hour),
        (true, Some(price)) => Ok(price),
        (true, None) => Err(format!(
            "usd_per_hour: the catalogue has no spot price of {}. Set the key, or `spot = false`.",
            entry.id()
        )),
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::catalogue::built_in;
    use serde_json::{Value, json};

    use super::*;

    /// The date of the built-in entries, in Unix seconds.
    const NOW: i64 = 20_787 * 86_400;

    fn with_offer(offer: &Value) -> KubernetesConfig {
        let mut named = json!({"name": "l4"});
        for (key, value) in offer.as_object().unwrap() {
            named[key.as_str()] = value.clone();
        }
        let config = json!({"work_dir": "/tmp", "image": "attune-node:1", "offer": [named]});
        let config: KubernetesConfig = serde_json::from_value(config).unwrap();
        config.check().unwrap();
        config
    }

    fn filled(offer: &Value) -> KubernetesOffer {
        let mut config = with_offer(offer);
        assert!(config.unpriced(built_in(), NOW).is_empty());
        config.offers = vec![config.offers[0].filled(built_in(), NOW)];
        config.check().unwrap();
        config.offers.remove(0)
    }

    fn refused(offer: &Value) -> String {
        with_offer(offer).offers[0].filled(built_in(), NOW).no_price.unwrap()
    }

    #[test]
    fn an_offer_is_filled_from_its_instance_type() {
        let offer = filled(&json!({"instance_type": "aws:g6.xlarge", "region": "us-east-1"}));
        let entry = built_in().named("aws:g6.xlarge", Some("us-east-1")).unwrap();
        assert_eq!((offer.memory_bytes, offer.threads), (15_461_882_265, 3), "nine tenths of 16 GiB and 4 processors");
        assert_eq!(offer.settings().micro_usd_per_hour(), (entry.usd_per_hour * 1e6).round() as u64);
        assert_eq!(offer.node_selector[INSTANCE_TYPE], "g6.xlarge");
        let gpu = offer.gpu.unwrap();
        let usable = built_in().gpu("NVIDIA-L4").unwrap().usable().0;
        assert_eq!((gpu.product.as_str(), gpu.count, gpu.memory_bytes), ("NVIDIA-L4", 1, usable));
        assert_eq!(gpu.resource, "nvidia.com/gpu");
        let only = filled(&json!({"instance_type": "aws:g6.4xlarge", "spot": true}));
        assert_eq!(only.region.as_deref(), Some("us-east-1"), "the only one of the catalogue");
        assert_eq!(only.settings().micro_usd_per_hour(), 622_600, "the spot price");
    }

    #[test]
    fn the_settings_of_an_offer_win_over_the_catalogue() {
        let offer = filled(&json!({
            "instance_type": "aws:g6.xlarge", "region": "us-east-1", "memory_bytes": 1 << 30, "threads": 2,
            "usd_per_hour": 0.25, "node_selector": {INSTANCE_TYPE: "mine"},
            "gpu": {"product": "A", "memory_bytes": 1 << 30},
        }));
        let price = offer.settings().micro_usd_per_hour();
        assert_eq!((offer.memory_bytes, offer.threads, price), (1 << 30, 2, 250_000));
        assert_eq!((offer.node_selector[INSTANCE_TYPE].as_str(), offer.gpu.unwrap().product.as_str()), ("mine", "A"));
        assert_eq!(filled(&json!({"memory_bytes": 1 << 30, "threads": 2})).gpu, None, "no instance type");
    }

    #[test]
    fn a_stale_price_refuses_the_offer_and_is_a_warning_that_names_the_entry() {
        let config = with_offer(&json!({"instance_type": "aws:g6.4xlarge"}));
        let warnings = config.unpriced(built_in(), NOW + 91 * 86_400);
        let text = "kubernetes.offer l4 has no price, so no run starts there: the price of aws.g6.4xlarge.us-east-1 is \
                    stale: it is of 2026-11-30";
        assert!(warnings.len() == 1 && warnings[0].starts_with(text), "{warnings:?}");
        let stale = config.offers[0].filled(built_in(), NOW + 91 * 86_400);
        assert!(stale.no_price.is_some() && stale.memory_bytes > 0, "its runs continue on machines of that size");
        let own = json!({"instance_type": "aws:g6.4xlarge", "usd_per_hour": 1.0});
        assert!(with_offer(&own).unpriced(built_in(), NOW + 91 * 86_400).is_empty(), "it has its own price");
    }

    #[test]
    fn an_entry_of_an_administrator_is_used() {
        let mut catalogue = built_in().clone();
        let entry = catalogue.instances.iter_mut().find(|entry| entry.instance_type == "g6.4xlarge").unwrap();
        entry.usd_per_hour = 1.25;
        let config = with_offer(&json!({"instance_type": "aws:g6.4xlarge"}));
        assert_eq!(config.offers[0].filled(&catalogue, NOW).settings().micro_usd_per_hour(), 1_250_000);
    }

    #[test]
    fn what_the_catalogue_does_not_have_is_named() {
        let wrong = refused(&json!({"instance_type": "aws:g6.xlrage"}));
        let start = "instance_type: aws:g6.xlrage is not allowed; ";
        assert!(wrong.starts_with(start) && wrong.contains("aws:g6.xlarge"), "{wrong}");
        let wrong = refused(&json!({"instance_type": "aws:g6.xlarge"}));
        assert!(wrong.starts_with("region: null ") && wrong.contains("us-west-2"), "{wrong}");
        let wrong = refused(&json!({"instance_type": "aws:p5.4xlarge", "spot": true}));
        assert!(wrong.contains("usd_per_hour: the catalogue has no spot price of aws.p5.4xlarge.us-east-1"), "{wrong}");
    }
}
