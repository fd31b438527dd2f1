//! The GPUs that would hold a job, for a job that no offer can hold.

use super::entry::{Catalogue, Gpu, InstanceType};
use crate::{bytes::Bytes, memory::CudaEstimate};

/// The numbers of GPUs that can hold a job: one, or several of one machine if it is sharded.
const GPUS: [u32; 5] = [1, 2, 4, 8, 16];

/// A way to hold a job on one machine of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holder<'a> {
    /// The kind of GPU.
    pub gpu: &'a Gpu,
    /// The number of GPUs over which the job is distributed; 1: it is not.
    pub gpus: u32,
    /// The memory that each of the GPUs needs, with the margin.
    pub needed: Bytes,
    /// The cheapest instance type on demand with that many GPUs or more, and with the memory for their processes.
    pub instance: &'a InstanceType,
}

/// The GPUs that would hold a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice<'a> {
    /// The job's estimate on one GPU.
    pub need: &'a CudaEstimate,
    /// The kinds of which one GPU holds the job, the cheapest first.
    pub single: Vec<Holder<'a>>,
    /// The kinds of which several GPUs of one machine hold it, sharded, the cheapest first.
    pub sharded: Vec<Holder<'a>>,
}

/// Returns the entries that would hold a job with this estimate: for each kind of GPU, one GPU if it is enough,
/// otherwise the smallest number. Only kinds with an instance type are returned.
#[must_use]
pub fn advice<'a>(need: &'a CudaEstimate, catalogue: &'a Catalogue) -> Advice<'a> {
    let mut advice = Advice { need, single: Vec::new(), sharded: Vec::new() };
    for gpu in &catalogue.gpus {
        let Some(gpus) = GPUS.into_iter().find(|gpus| need.needed(*gpus) <= gpu.usable()) else { continue };
        if let Some(instance) = cheapest(need, gpus, gpu, catalogue) {
            let holders = if gpus == 1 { &mut advice.single } else { &mut advice.sharded };
            holders.push(Holder { gpu, gpus, needed: need.needed(gpus), instance });
        }
    }
    for holders in [&mut advice.single, &mut advice.sharded] {
        holders.sort_by(|a, b| a.instance.usd_per_hour.total_cmp(&b.instance.usd_per_hour));
    }
    advice
}

/// Returns the cheapest instance type with at least so many GPUs of this kind, and with the memory for a process for
/// each.
fn cheapest<'a>(need: &CudaEstimate, gpus: u32, gpu: &Gpu, catalogue: &'a Catalogue) -> Option<&'a InstanceType> {
    let host = Bytes(need.host.needed().0.saturating_mul(gpus.into()));
    let large = catalogue
        .instances
        .iter()
        .filter(|entry| entry.gpu == gpu.product && entry.gpus >= gpus && Bytes::mib(entry.memory_mib) >= host);
    large.min_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        architecture::Architecture,
        catalogue::built_in,
        memory::{Workload, smallest_on_cuda},
        spec::{Requested, TrainSpec, request::TrainerFields},
    };

    const LLAMA_8B: &str = include_str!("../../testdata/llama3_8b.json");
    const LLAMA_70B: &str = include_str!("../../testdata/llama3_70b.json");

    fn model(config: &str) -> Architecture {
        Architecture::from_config_json(config.as_bytes()).unwrap()
    }

    /// Returns the estimate of a job of rank 16 on NF4 with checkpointing, with rows of up to so many tokens.
    fn need(architecture: &Architecture, longest_row: u64, optimizer: &str) -> CudaEstimate {
        let trainer = TrainerFields { optimizer: Some(optimizer.into()), ..TrainerFields::default() };
        let train = TrainSpec::check(&Requested { trainer, ..Requested::default() }, 100, 8192).unwrap();
        smallest_on_cuda(Workload { architecture, train: &train, longest_row })
    }

    fn products<'a>(holders: &[Holder<'a>]) -> Vec<(&'a str, u32)> {
        holders.iter().map(|holder| (holder.gpu.product.as_str(), holder.gpus)).collect()
    }

    #[test]
    fn a_70b_adapter_in_4_bits_takes_one_large_gpu_or_several_small_ones() {
        // 38.7 GiB of states with 8-bit moments, 4.9 GiB of the rest and a tenth of it: 44.1 of the 44.4 GiB of an
        // L40S. Of two L4, each would hold half the states, but all of the rest: 25.9 of 22.0 GiB.
        let need = need(&model(LLAMA_70B), 2048, "adamw_8bit");
        assert_eq!((need.needed(1).to_string(), need.needed(2).to_string()), ("44.1 GiB".into(), "25.9 GiB".into()));
        let found = advice(&need, built_in());
        let single = products(&found.single);
        assert!(single.contains(&("NVIDIA-L40S", 1)) && single.contains(&("NVIDIA-A100-80GB-PCIe", 1)), "{single:?}");
        assert!(single.iter().all(|(product, _)| *product != "NVIDIA-L4"));
        assert!(products(&found.sharded).contains(&("NVIDIA-L4", 4)), "{:?}", products(&found.sharded));
        assert_eq!(found.single[0].instance.id().to_string(), "azure.Standard_NC24ads_A100_v4.eastus");
    }

    #[test]
    fn moments_in_f32_take_a_70b_job_from_one_48_gb_gpu_to_one_of_80_gb() {
        // 1.2 GiB more than with 8-bit moments: 45.2 GiB.
        let need = need(&model(LLAMA_70B), 2048, "adamw");
        let found = advice(&need, built_in());
        let single = products(&found.single);
        assert!(single.contains(&("NVIDIA-H100-80GB-HBM3", 1)) && !single.contains(&("NVIDIA-L40S", 1)), "{single:?}");
    }

    #[test]
    fn two_24_gb_gpus_hold_a_70b_job_of_short_rows_and_a_small_vocabulary_sharded() {
        // The vocabulary of Llama 2. Each GPU: half of 35.8 GiB of states, 3.4 GiB of the rest with what is
        // gathered, and a tenth of that: 21.6 of 22.0 GiB.
        let architecture = Architecture { vocab_size: 32_000, ..model(LLAMA_70B) };
        let need = need(&architecture, 512, "adamw_8bit");
        let found = advice(&need, built_in());
        assert!(products(&found.sharded).contains(&("NVIDIA-L4", 2)), "{:?}", products(&found.sharded));
        assert!(products(&found.single).iter().all(|(product, _)| *product != "NVIDIA-L4"));
    }

    #[test]
    fn an_8b_adapter_takes_one_24_gb_gpu() {
        // 5.9 GiB of states, 1.9 GiB of the rest and a tenth of it.
        let need = need(&model(LLAMA_8B), 2048, "adamw");
        assert_eq!(need.needed(1).to_string(), "8.1 GiB");
        let found = advice(&need, built_in());
        assert_eq!(found.single.len(), built_in().gpus.len());
        assert!(products(&found.single).contains(&("NVIDIA-L4", 1)) && found.sharded.is_empty());
    }

    #[test]
    fn an_instance_type_without_the_memory_for_the_host_is_not_advised() {
        let architecture = model(LLAMA_8B);
        let mut need = need(&architecture, 2048, "adamw");
        let l4 = |need: &CudaEstimate| {
            let found = advice(need, built_in());
            found.single.iter().find(|holder| holder.gpu.product == "NVIDIA-L4").map(|l4| l4.instance.memory_mib)
        };
        assert_eq!(l4(&need), Some(16_384));
        need.host.peak = Bytes::mib(16_384);
        assert_eq!(l4(&need), Some(65_536));
    }

    #[test]
    fn a_model_that_no_machine_holds_has_no_advice() {
        let architecture = Architecture { num_hidden_layers: 80_000, ..model(LLAMA_70B) };
        let need = need(&architecture, 2048, "adamw");
        let found = advice(&need, built_in());
        assert!(found.single.is_empty() && found.sharded.is_empty());
    }

    proptest! {
        /// Each holder has the memory, and shorter rows never take more GPUs of a kind.
        #[test]
        fn every_holder_is_large_enough(row in 1_u64..200_000, less in 1_u64..200_000, layers in 1_u64..400) {
            let architecture = Architecture { num_hidden_layers: layers, ..model(LLAMA_70B) };
            let (need, less) = (need(&architecture, row, "adamw"), need(&architecture, less.min(row), "adamw"));
            let (found, smaller) = (advice(&need, built_in()), advice(&less, built_in()));
            for holder in found.single.iter().chain(&found.sharded) {
                prop_assert!(holder.gpu.usable() >= holder.needed);
                prop_assert!(holder.gpu.usable().0 * u64::from(holder.gpus) >= need.device.peak.0);
                prop_assert!(holder.instance.gpus >= holder.gpus && holder.instance.gpu == holder.gpu.product);
                let mut all = smaller.single.iter().chain(&smaller.sharded);
                let same = all.find(|other| other.gpu.product == holder.gpu.product);
                prop_assert!(same.is_some_and(|same| same.gpus <= holder.gpus));
            }
        }
    }
}
