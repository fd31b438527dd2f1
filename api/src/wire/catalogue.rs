//! The catalogue of instance types of clouds.

use attune_domain::{
    bad_field::BadField,
    catalogue::{Catalogue, Date, EntryId, Gpu, InstanceType},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// The request body for setting an entry of the catalogue.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCatalogueEntry {
    /// The product of the GPUs, one of the catalogue's.
    #[schema(example = "NVIDIA-L4")]
    pub gpu: String,
    /// The number of GPUs.
    #[schema(minimum = 1, maximum = 16)]
    pub gpus: u32,
    /// The number of virtual CPUs.
    #[schema(minimum = 1, maximum = 1024)]
    pub vcpus: u32,
    /// The memory of the machine, in MiB.
    #[schema(minimum = 1024)]
    pub memory_mib: u64,
    /// The price of an hour on demand, in USD. It must be plausible for the number and the memory of the GPUs.
    pub usd_per_hour: f64,
    /// The price of an hour of a spot machine, in USD; `null` if it is not known.
    pub spot_usd_per_hour: Option<f64>,
    /// The source of the figures.
    #[schema(max_length = 300)]
    pub source: String,
    /// The date of the figures, at most 90 days ago.
    #[schema(example = "2026-11-30")]
    pub fetched: String,
}

impl NewCatalogueEntry {
    /// Returns the entry with this ID.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the date is not one.
    pub fn entry(self, id: EntryId) -> Result<InstanceType, ApiError> {
        let fetched: Date = self.fetched.parse().map_err(|wrong: BadField| ApiError::from(wrong))?;
        Ok(InstanceType {
            cloud: id.cloud,
            instance_type: id.instance_type,
            region: id.region,
            gpu: self.gpu,
            gpus: self.gpus,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            usd_per_hour: self.usd_per_hour,
            spot_usd_per_hour: self.spot_usd_per_hour,
            source: self.source,
            fetched,
        })
    }
}

/// An instance type of a cloud in one region.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CatalogueEntryView {
    /// The ID: cloud, instance type and region.
    #[schema(example = "aws.g6.xlarge.us-east-1")]
    pub id: String,
    /// The object type, always `catalogue.entry`.
    pub object: &'static str,
    /// The cloud: `aws`, `azure` or `gcp`.
    pub cloud: String,
    /// The cloud's name for the type.
    pub instance_type: String,
    /// The cloud's name for the region.
    pub region: String,
    /// The product of the GPUs.
    pub gpu: String,
    /// The number of GPUs.
    pub gpus: u32,
    /// The number of virtual CPUs.
    pub vcpus: u32,
    /// The memory of the machine, in MiB.
    pub memory_mib: u64,
    /// The price of an hour on demand, in USD.
    pub usd_per_hour: f64,
    /// The price of an hour of a spot machine, in USD; `null` if it is not known.
    pub spot_usd_per_hour: Option<f64>,
    /// The source of the figures.
    pub source: String,
    /// The date of the figures.
    pub fetched: String,
    /// `true` if the figures are more than 90 days old: the prices may be wrong.
    pub stale: bool,
}

impl CatalogueEntryView {
    /// Creates the view of an entry at a time in Unix seconds.
    pub fn new(entry: InstanceType, now: i64) -> Self {
        Self {
            id: entry.id().to_string(),
            object: "catalogue.entry",
            cloud: entry.cloud,
            instance_type: entry.instance_type,
            region: entry.region,
            gpu: entry.gpu,
            gpus: entry.gpus,
            vcpus: entry.vcpus,
            memory_mib: entry.memory_mib,
            usd_per_hour: entry.usd_per_hour,
            spot_usd_per_hour: entry.spot_usd_per_hour,
            source: entry.source,
            fetched: entry.fetched.to_string(),
            stale: entry.fetched.is_stale(now),
        }
    }
}

/// A kind of GPU.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GpuView {
    /// The product's name, as NVIDIA's tools report it.
    pub product: String,
    /// The memory, in MiB.
    pub memory_mib: u64,
    /// The memory that a process can allocate, in MiB.
    pub usable_mib: u64,
    /// The peak rate of bf16 matrix multiplications without sparsity, in TFLOPS.
    pub bf16_tflops: f64,
    /// The bandwidth of the memory, in GB/s.
    pub bandwidth_gb_per_s: f64,
    /// The source of the figures.
    pub source: String,
    /// The date of the figures.
    pub fetched: String,
}

impl From<&Gpu> for GpuView {
    fn from(gpu: &Gpu) -> Self {
        Self {
            product: gpu.product.clone(),
            memory_mib: gpu.memory_mib,
            usable_mib: gpu.usable_mib,
            bf16_tflops: gpu.bf16_tflops,
            bandwidth_gb_per_s: gpu.bandwidth_gb_per_s,
            source: gpu.source.clone(),
            fetched: gpu.fetched.to_string(),
        }
    }
}

/// The catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CatalogueView {
    /// The object type, always `catalogue`.
    pub object: &'static str,
    /// The kinds of GPUs.
    pub gpus: Vec<GpuView>,
    /// The instance types, ordered by ID.
    pub data: Vec<CatalogueEntryView>,
}

impl CatalogueView {
    /// Creates the view of a catalogue at a time in Unix seconds.
    pub fn new(catalogue: Catalogue, now: i64) -> Self {
        Self {
            object: "catalogue",
            gpus: catalogue.gpus.iter().map(GpuView::from).collect(),
            data: catalogue.instances.into_iter().map(|entry| CatalogueEntryView::new(entry, now)).collect(),
        }
    }
}
