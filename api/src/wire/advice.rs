//! The GPUs of the catalogue that would hold a job.

use std::collections::BTreeMap;

use attune_domain::{
    catalogue::{Advice, Holder},
    memory::MemoryEstimate,
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// The GPUs of the catalogue that would hold a job which no offer can hold. This build has no GPU code, so they are
/// advice on hardware. The estimate is for a computation in bf16 over a quantized base on one GPU. No run on a GPU has
/// been measured, so it is unverified.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdviceView {
    /// A human-readable summary.
    pub message: String,
    /// The estimated peak of the memory of one GPU that holds the whole job.
    pub device: DeviceMemoryView,
    /// The estimated peak of the memory of the machine that the GPU is in.
    pub host: DeviceMemoryView,
    /// The kinds of GPUs of which one holds the job, the cheapest first.
    pub single: Vec<GpuHolderView>,
    /// The kinds of GPUs of which several hold the job if it is sharded over them, which this build cannot do; the
    /// cheapest first.
    pub sharded: Vec<GpuHolderView>,
}

/// An unverified peak of memory, by component, without a margin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceMemoryView {
    /// The peak, the sum of all parts.
    pub peak_bytes: u64,
    /// The bytes of each part: `NF4 base`, `embeddings`, `kept activations` and so on.
    pub parts: BTreeMap<String, u64>,
}

impl From<&MemoryEstimate> for DeviceMemoryView {
    fn from(estimate: &MemoryEstimate) -> Self {
        let parts = estimate.terms.iter().map(|(name, bytes)| (name.clone(), bytes.0)).collect();
        Self { peak_bytes: estimate.peak.0, parts }
    }
}

/// A number of GPUs that would hold a job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GpuHolderView {
    /// The product of the GPUs.
    pub gpu: String,
    /// The number of GPUs.
    pub gpus: u32,
    /// The usable memory of one GPU, in MiB.
    pub usable_mib: u64,
    /// The memory that each GPU needs, in MiB, with a margin of 10 % of everything but the weights, the adapter, its
    /// gradients and the optimizer's moments, whose sizes are known. Several GPUs share these.
    pub needed_mib: u64,
    /// The ID of the cheapest catalogue entry with that many GPUs and the memory for their processes.
    pub catalogue_entry: String,
    /// The price of an hour of that entry on demand, in USD.
    pub usd_per_hour: f64,
    /// `true` if that price is more than 90 days old.
    pub stale: bool,
}

impl AdviceView {
    /// Creates the view of an advice at `now`.
    pub fn new(advice: &Advice<'_>, now: DateTime<Utc>) -> Self {
        let views = |holders: &[Holder<'_>]| holders.iter().map(|holder| view(holder, now)).collect::<Vec<_>>();
        Self {
            message: message(advice),
            device: DeviceMemoryView::from(&advice.need.device),
            host: DeviceMemoryView::from(&advice.need.host),
            single: views(&advice.single),
            sharded: views(&advice.sharded),
        }
    }
}

fn view(holder: &Holder<'_>, now: DateTime<Utc>) -> GpuHolderView {
    GpuHolderView {
        gpu: holder.gpu.product.clone(),
        gpus: holder.gpus,
        usable_mib: holder.gpu.usable_mib,
        needed_mib: holder.needed.0.div_ceil(1 << 20),
        catalogue_entry: holder.instance.id().to_string(),
        usd_per_hour: holder.instance.usd_per_hour,
        stale: holder.instance.fetched.is_stale(now.timestamp()),
    }
}

fn message(advice: &Advice<'_>) -> String {
    let device = &advice.need.device;
    format!(
        "{} The estimated peak on one GPU is {}: {}. It is unverified, because no run on a GPU has been measured.",
        holders(advice),
        device.peak,
        device.breakdown()
    )
}

/// Returns the description of the GPUs.
fn holders(advice: &Advice<'_>) -> String {
    let words = |holders: &[Holder<'_>]| {
        let each = holders.iter().map(|holder| format!("{} × {}", holder.gpus, holder.gpu.product));
        each.collect::<Vec<_>>().join(", ")
    };
    match (&advice.single[..], &advice.sharded[..]) {
        ([], []) => "No machine of the catalogue would hold the job.".into(),
        ([], sharded) => format!("Only sharded, which this build cannot do: {}.", words(sharded)),
        (single, []) => format!("It would fit on {}.", words(single)),
        (single, sharded) => {
            format!("It would fit on {}; sharded, which this build cannot do, on {}.", words(single), words(sharded))
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        catalogue::{advice, built_in},
        memory::{Workload, smallest_on_cuda},
        spec::{Requested, TrainSpec},
    };

    use super::*;

    const LLAMA_70B: &str = include_str!("../../../domain/testdata/llama3_70b.json");

    /// Returns the advice for rows of 2048 tokens and a model with so many blocks of a 70B model.
    fn of(num_hidden_layers: u64) -> AdviceView {
        let architecture = Architecture::from_config_json(LLAMA_70B.as_bytes()).unwrap();
        let architecture = Architecture { num_hidden_layers, ..architecture };
        let train = TrainSpec::check(&Requested::default(), 100, 8192).unwrap();
        let need = smallest_on_cuda(Workload { architecture: &architecture, train: &train, longest_row: 2048 });
        AdviceView::new(&advice(&need, built_in()), Utc::now())
    }

    #[test]
    fn the_summary_names_what_holds_the_job_and_what_would_need_sharding() {
        let found = of(80);
        assert!(found.message.starts_with("It would fit on 1 × NVIDIA-A100-80GB-PCIe"), "{}", found.message);
        assert!(found.message.contains("sharded, which this build cannot do, on "), "{}", found.message);
        assert!(found.message.contains("4 × NVIDIA-L4"), "{}", found.message);
        assert!(found.message.contains("on one GPU is 44.7 GiB: NF4 base 32.9 GiB, embeddings"), "{}", found.message);
        assert!(found.message.ends_with("unverified, because no run on a GPU has been measured."), "{}", found.message);
        assert_eq!(found.single[0].catalogue_entry, "azure.Standard_NC24ads_A100_v4.eastus");
        assert!(of(400).message.starts_with("Only sharded, which this build cannot do: "));
        assert!(of(80_000).message.starts_with("No machine of the catalogue would hold the job. "));
    }

    #[test]
    fn the_parts_add_up_and_each_gpu_has_the_memory_that_it_needs() {
        let found = of(80);
        for memory in [&found.device, &found.host] {
            assert_eq!(memory.parts.values().sum::<u64>(), memory.peak_bytes);
        }
        assert!(found.single[0].needed_mib > found.device.peak_bytes >> 20);
        let l4 = found.sharded.iter().find(|holder| holder.gpu == "NVIDIA-L4").unwrap();
        assert!(l4.needed_mib <= l4.usable_mib && 4 * l4.needed_mib > found.device.peak_bytes >> 20);
    }
}
