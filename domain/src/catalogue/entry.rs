//! The entries of the catalogue.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::date::Date;
use crate::{bad_field::BadField, bytes::Bytes};

/// The clouds of the catalogue.
pub(super) const CLOUDS: [&str; 3] = ["aws", "azure", "gcp"];

/// The maximum length of each part of an ID, in characters.
const MOST_CHARACTERS: usize = 64;

/// A kind of GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// The product's name, as the label `nvidia.com/gpu.product` of Kubernetes nodes has it.
    pub product: String,
    /// The memory of the board, in MiB.
    pub memory_mib: u64,
    /// The memory that a process can allocate, in MiB.
    pub usable_mib: u64,
    /// The peak rate of bf16 matrix multiplications without sparsity, in TFLOPS.
    pub bf16_tflops: f64,
    /// The bandwidth of the memory, in GB/s.
    pub bandwidth_gb_per_s: f64,
    /// The source of the figures.
    pub source: String,
    /// The date on which the figures were read.
    pub fetched: Date,
}

impl Gpu {
    /// Returns the memory that a process can allocate.
    #[must_use]
    pub const fn usable(&self) -> Bytes {
        Bytes::mib(self.usable_mib)
    }
}

/// An instance type of a cloud in one region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceType {
    /// The cloud: `aws`, `azure` or `gcp`.
    pub cloud: String,
    /// The cloud's name for the type.
    pub instance_type: String,
    /// The cloud's name for the region.
    pub region: String,
    /// The product of the GPUs, one of the catalogue's.
    pub gpu: String,
    /// The number of GPUs.
    pub gpus: u32,
    /// The number of virtual CPUs.
    pub vcpus: u32,
    /// The memory of the machine, in MiB.
    pub memory_mib: u64,
    /// The price of an hour on demand, in US dollars.
    pub usd_per_hour: f64,
    /// The price of an hour of a spot machine, in US dollars; `None`: unknown, or not offered.
    pub spot_usd_per_hour: Option<f64>,
    /// The source of the figures.
    pub source: String,
    /// The date on which the figures were read.
    pub fetched: Date,
}

impl InstanceType {
    /// Returns the ID.
    #[must_use]
    pub fn id(&self) -> EntryId {
        let (cloud, instance_type) = (self.cloud.clone(), self.instance_type.clone());
        EntryId { cloud, instance_type, region: self.region.clone() }
    }
}

/// The ID of an instance type: `aws.g6.xlarge.us-east-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// The cloud.
    pub cloud: String,
    /// The cloud's name for the type, which may have dots.
    pub instance_type: String,
    /// The cloud's name for the region, which has none.
    pub region: String,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.cloud, self.instance_type, self.region)
    }
}

impl FromStr for EntryId {
    type Err = BadField;

    fn from_str(text: &str) -> Result<Self, BadField> {
        let refused = || BadField {
            param: "entry_id",
            given: text.chars().take(MOST_CHARACTERS).collect(),
            allowed: "cloud.instance_type.region, such as aws.g6.xlarge.us-east-1; the cloud is aws, azure or gcp"
                .into(),
        };
        let is_name = |part: &str, others: &str| {
            (1..=MOST_CHARACTERS).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let (cloud, rest) = text.split_once('.').ok_or_else(refused)?;
        let (instance_type, region) = rest.rsplit_once('.').ok_or_else(refused)?;
        if CLOUDS.contains(&cloud) && is_name(instance_type, "._-") && is_name(region, "-") {
            return Ok(Self { cloud: cloud.into(), instance_type: instance_type.into(), region: region.into() });
        }
        Err(refused())
    }
}

/// GPUs and instance types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The kinds of GPUs.
    pub gpus: Vec<Gpu>,
    /// The instance types, per region.
    pub instances: Vec<InstanceType>,
}

impl Catalogue {
    /// Returns a kind of GPU by its product's name.
    #[must_use]
    pub fn gpu(&self, product: &str) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.product == product)
    }

    /// Returns the instance type with this ID.
    #[must_use]
    pub fn instance(&self, id: &EntryId) -> Option<&InstanceType> {
        self.instances.iter().find(|entry| entry.id() == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for text in ["aws.g6.xlarge.us-east-1", "azure.Standard_NC24ads_A100_v4.eastus", "gcp.a2-highgpu-1g.us-west4"] {
            assert_eq!(text.parse::<EntryId>().unwrap().to_string(), text);
        }
        let id: EntryId = "aws.g6.xlarge.us-east-1".parse().unwrap();
        assert_eq!((id.instance_type.as_str(), id.region.as_str()), ("g6.xlarge", "us-east-1"));
        let long = format!("aws.{}.us-east-1", "x".repeat(65));
        for wrong in ["", "aws", "aws.g6", "aws..x", "ibm.a.b", "aws.g6/x.us-east-1", "aws.g6.xlarge.", &long] {
            assert_eq!(wrong.parse::<EntryId>().unwrap_err().param, "entry_id", "{wrong}");
        }
    }
}
