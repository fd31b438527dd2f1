//! The prices of nodes that a Kubernetes cluster has, by their instance type.

use std::collections::BTreeMap;

use attune_domain::catalogue::{Catalogue, InstanceType};

/// The prices of an hour of whole nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodePrices<'a> {
    /// The prices of the configuration, `instance_usd_per_hour`.
    pub(crate) own: &'a BTreeMap<String, f64>,
    /// The catalogue, for other instance types.
    pub(crate) catalogue: &'a Catalogue,
    /// The time, in Unix seconds.
    pub(crate) now: i64,
}

impl NodePrices<'_> {
    /// Returns the price of an hour of a node in US dollars.
    ///
    /// # Errors
    /// The reason why it is unknown.
    pub(crate) fn usd_per_hour(&self, instance_type: &str, region: Option<&str>, spot: bool) -> Result<f64, String> {
        let kind = if spot { "spot price" } else { "price" };
        let price = match self.own.get(instance_type) {
            Some(usd) => Some(*usd),
            None => self.of_catalogue(instance_type, region, spot)?,
        };
        price.filter(|usd| *usd > 0.0 || !spot).ok_or_else(|| {
            let place = region.map(|region| format!(" in {region}")).unwrap_or_default();
            format!("neither instance_usd_per_hour nor the catalogue has a {kind} of {instance_type}{place}")
        })
    }

    fn of_catalogue(&self, instance_type: &str, region: Option<&str>, spot: bool) -> Result<Option<f64>, String> {
        let is_its =
            |entry: &&InstanceType| entry.instance_type == instance_type && Some(entry.region.as_str()) == region;
        let Some(entry) = self.catalogue.instances.iter().find(is_its) else { return Ok(None) };
        if entry.fetched.is_stale(self.now) {
            return Err(format!(
                "the price of {} is stale: it is of {}. Refresh the entry.",
                entry.id(),
                entry.fetched
            ));
        }
        Ok(if spot { entry.spot_usd_per_hour } else { Some(entry.usd_per_hour) })
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::catalogue::built_in;

    use super::*;

    /// The date of the built-in entries, in Unix seconds.
    const NOW: i64 = 20_787 * 86_400;

    #[test]
    fn a_price_is_that_of_the_configuration_or_else_of_the_catalogue_in_the_region() {
        let own = BTreeMap::from([("g6.4xlarge".to_owned(), 1.5), ("k3s".to_owned(), 0.0)]);
        let prices = NodePrices { own: &own, catalogue: built_in(), now: NOW };
        let entry = built_in().named("aws:g6.xlarge", Some("us-east-1")).unwrap();
        let price = |name, region, spot| prices.usd_per_hour(name, region, spot);
        assert_eq!(price("g6.xlarge", Some("us-east-1"), false), Ok(entry.usd_per_hour));
        assert_eq!(price("g6.xlarge", Some("us-east-1"), true).ok(), entry.spot_usd_per_hour);
        let missing = "neither instance_usd_per_hour nor the catalogue has a price of g6.xlarge in mars";
        assert_eq!(price("g6.xlarge", Some("mars"), false), Err(missing.into()));
        assert!(price("g6.xlarge", None, false).is_err());
        assert_eq!(price("g6.4xlarge", Some("us-east-1"), false), Ok(1.5), "the configuration wins");
        assert_eq!(price("k3s", None, false), Ok(0.0), "machines of their owner");
        assert!(price("k3s", None, true).unwrap_err().contains("a spot price of k3s"));
        let later = NodePrices { now: NOW + 91 * 86_400, ..prices };
        let stale = later.usd_per_hour("g6.xlarge", Some("us-east-1"), false).unwrap_err();
        assert!(stale.starts_with("the price of aws.g6.xlarge.us-east-1 is stale: it is of "), "{stale}");
    }
}
