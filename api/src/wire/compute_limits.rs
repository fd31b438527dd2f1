//! The limits of a job on its machine, as a request gives them.

use attune_domain::offer::{ComputeLimits, DeviceChoice};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id::truncated};

/// The largest accepted limit, in USD. A larger one would not limit anything.
const MOST_USD: f64 = 1e9;

/// The maximum number of regions or of GPU products.
const MOST_NAMES: usize = 20;

/// The maximum length of the name of a region or a GPU product.
const MOST_CHARACTERS: usize = 64;

/// The latest deadline, from the request on, in seconds: a year.
const LATEST_DEADLINE: i64 = 366 * 86_400;

/// A device, or a list of GPU products.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum DeviceField {
    /// `auto`, `cpu` or `cuda`.
    Kind(String),
    /// GPU products, as NVIDIA names them.
    Products(Vec<String>),
}

impl From<&DeviceChoice> for DeviceField {
    fn from(choice: &DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => Self::Kind("auto".into()),
            DeviceChoice::Cpu => Self::Kind("cpu".into()),
            DeviceChoice::Cuda => Self::Kind("cuda".into()),
            DeviceChoice::Products(products) => Self::Products(products.clone()),
        }
    }
}

/// The fields of a request that limit the machine.
#[derive(Debug, Clone, Copy)]
pub struct LimitFields<'a> {
    /// `compute.max_usd_per_hour`.
    pub max_usd_per_hour: Option<f64>,
    /// `compute.max_usd`.
    pub max_usd: Option<f64>,
    /// `compute.deadline`.
    pub deadline: Option<i64>,
    /// `compute.spot`.
    pub spot: Option<bool>,
    /// `compute.regions`.
    pub regions: Option<&'a [String]>,
    /// `compute.device`.
    pub device: Option<&'a DeviceField>,
}

impl LimitFields<'_> {
    /// Returns the limits of a request at a time in Unix seconds.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for the first invalid field.
    pub fn checked(self, now: i64) -> Result<ComputeLimits, ApiError> {
        Ok(ComputeLimits {
            max_micro_usd_per_hour: price("compute.max_usd_per_hour", self.max_usd_per_hour)?,
            max_micro_usd: price("compute.max_usd", self.max_usd)?,
            deadline: deadline(self.deadline, now)?,
            spot: self.spot.unwrap_or(false),
            regions: self.regions.map(|regions| names("compute.regions", regions)).transpose()?.unwrap_or_default(),
            device: self.device.map(device).transpose()?.unwrap_or_default(),
        })
    }
}

fn price(param: &'static str, given: Option<f64>) -> Result<Option<u64>, ApiError> {
    let Some(usd) = given else { return Ok(None) };
    if (0.0..=MOST_USD).contains(&usd) {
        return Ok(Some((usd * 1e6).ceil() as u64));
    }
    Err(ApiError::invalid(param, format!("Invalid '{param}': {usd} is not from 0 to {MOST_USD}.")))
}

fn deadline(given: Option<i64>, now: i64) -> Result<Option<i64>, ApiError> {
    let Some(at) = given else { return Ok(None) };
    let latest = now.saturating_add(LATEST_DEADLINE);
    if at > now && at <= latest {
        return Ok(Some(at));
    }
    let param = "compute.deadline";
    let message = format!("Invalid '{param}': {at} is not a time in Unix seconds after {now} and at most {latest}.");
    Err(ApiError::invalid(param, message))
}

fn names(param: &'static str, given: &[String]) -> Result<Vec<String>, ApiError> {
    if given.is_empty() || given.len() > MOST_NAMES {
        let count = given.len();
        let message = format!("Invalid '{param}': it has {count} names; use 1 to {MOST_NAMES}, or omit it.");
        return Err(ApiError::invalid(param, message));
    }
    let is_name = |name: &&String| {
        (1..=MOST_CHARACTERS).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || " .-_/".contains(c))
    };
    match given.iter().find(|name| !is_name(name)) {
        None => Ok(given.to_vec()),
        Some(wrong) => {
            let wrong = truncated(wrong);
            let message = format!(
                "Invalid '{param}': '{wrong}' is not a name of 1 to {MOST_CHARACTERS} letters, digits, spaces, '.', \
                 '-', '_' and '/'."
            );
            Err(ApiError::invalid(param, message))
        }
    }
}

fn device(given: &DeviceField) -> Result<DeviceChoice, ApiError> {
    let param = "compute.device";
    match given {
        DeviceField::Products(products) => Ok(DeviceChoice::Products(names(param, products)?)),
        DeviceField::Kind(kind) => match kind.as_str() {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda),
            other => {
                let other = truncated(other);
                let message =
                    format!("Invalid '{param}': '{other}'. Use 'auto', 'cpu', 'cuda', or a list of GPU products.");
                Err(ApiError::invalid(param, message))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{http::json_body::from_value, wire::money::ComputeFields};

    fn checked(compute: Value) -> Result<ComputeLimits, String> {
        let limits = from_value::<ComputeFields>(compute).and_then(|compute| compute.limits(1000));
        limits.map_err(|error| error.body().error.param.unwrap_or_default())
    }

    #[test]
    fn every_limit_is_read() {
        assert_eq!(checked(json!({})), Ok(ComputeLimits::default()));
        let all = json!({"max_usd_per_hour": 2.5, "max_usd": 10, "deadline": 1001, "spot": true,
            "regions": ["eu-west-1"], "device": ["NVIDIA-L40S", "NVIDIA A100"]});
        let limits = checked(all).unwrap();
        assert_eq!((limits.max_micro_usd_per_hour, limits.max_micro_usd), (Some(2_500_000), Some(10_000_000)));
        assert_eq!(
            (limits.deadline, limits.spot, &limits.regions[..]),
            (Some(1001), true, &["eu-west-1".to_owned()][..])
        );
        let products = DeviceChoice::Products(vec!["NVIDIA-L40S".into(), "NVIDIA A100".into()]);
        assert_eq!(limits.device, products);
        for (given, choice) in [("auto", DeviceChoice::Auto), ("cpu", DeviceChoice::Cpu), ("cuda", DeviceChoice::Cuda)]
        {
            let limits = checked(json!({"device": given})).unwrap();
            assert_eq!(limits.device, choice);
            assert_eq!(DeviceField::from(&limits.device), DeviceField::Kind(given.into()));
        }
        assert_eq!(checked(json!({"max_usd_per_hour": 0})).unwrap().max_micro_usd_per_hour, Some(0));
    }

    #[test]
    fn limit_what_is_out_of_range_is_refused_by_its_field() {
        for (compute, param) in [
            (json!({"max_usd_per_hour": -1}), "compute.max_usd_per_hour"),
            (json!({"max_usd": 2e9}), "compute.max_usd"),
            (json!({"deadline": 1000}), "compute.deadline"),
            (json!({"deadline": 1000 + LATEST_DEADLINE + 1}), "compute.deadline"),
            (json!({"regions": []}), "compute.regions"),
            (json!({"regions": vec!["a"; MOST_NAMES + 1]}), "compute.regions"),
            (json!({"regions": ["x".repeat(MOST_CHARACTERS + 1)]}), "compute.regions"),
            (json!({"regions": ["a\n"]}), "compute.regions"),
            (json!({"device": "tpu"}), "compute.device"),
            (json!({"device": []}), "compute.device"),
        ] {
            assert_eq!(checked(compute.clone()), Err(param.into()), "{compute}");
        }
        assert!(checked(json!({"deadline": 1000 + LATEST_DEADLINE})).is_ok());
        assert!(checked(json!({"device": 5})).is_err());
    }
}
