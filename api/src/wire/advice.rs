//! The GPUs of the catalogue that would hold a job.

use attune_domain::catalogue::{Advice, Holder};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// The GPUs of the catalogue that would hold a job which no offer can hold. This build has no GPU code, so they are
/// advice on hardware, computed from the estimated peak with the number type of this build, `f32`; `bf16` takes less.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdviceView {
    /// A human-readable summary.
    pub message: String,
    /// The kinds of GPUs of which one holds the job, the cheapest first.
    pub single: Vec<GpuHolderView>,
    /// The kinds of GPUs of which several hold the job if it is sharded over them, which this build cannot do; the
    /// cheapest first.
    pub sharded: Vec<GpuHolderView>,
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
    /// The ID of the cheapest catalogue entry with that many GPUs.
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
        Self { message: message(advice), single: views(&advice.single), sharded: views(&advice.sharded) }
    }
}

fn view(holder: &Holder<'_>, now: DateTime<Utc>) -> GpuHolderView {
    GpuHolderView {
        gpu: holder.gpu.product.clone(),
        gpus: holder.gpus,
        usable_mib: holder.gpu.usable_mib,
        catalogue_entry: holder.instance.id().to_string(),
        usd_per_hour: holder.instance.usd_per_hour,
        stale: holder.instance.fetched.is_stale(now.timestamp()),
    }
}

fn message(advice: &Advice<'_>) -> String {
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
        bytes::Bytes,
        catalogue::{advice, built_in},
    };

    use super::*;

    fn of(gib: u64) -> AdviceView {
        AdviceView::new(&advice(Bytes::mib(gib << 10), built_in()), Utc::now())
    }

    #[test]
    fn the_summary_names_what_holds_the_job_and_what_would_need_sharding() {
        let found = of(60);
        assert!(found.message.starts_with("It would fit on 1 × NVIDIA-A100-80GB-PCIe"), "{}", found.message);
        assert!(found.message.contains("sharded, which this build cannot do, on "), "{}", found.message);
        assert!(found.message.contains("4 × NVIDIA-L4"), "{}", found.message);
        assert_eq!(found.single[0].catalogue_entry, "azure.Standard_NC24ads_A100_v4.eastus");
        assert!(of(300).message.starts_with("Only sharded, which this build cannot do: "));
        assert_eq!(of(100_000).message, "No machine of the catalogue would hold the job.");
    }
}
