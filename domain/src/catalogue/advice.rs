//! The GPUs that would hold a job, for a job that no offer can hold.

use super::entry::{Catalogue, Gpu, InstanceType};
use crate::bytes::Bytes;

/// The memory that each GPU of a sharded job needs in addition to its share: the device's context, the buffers of the
/// collectives, and a layer that is gathered while it is used.
///
/// Source: PyTorch FSDP's prefetch of one layer; NCCL's buffers and a CUDA context of about 0.5 GiB.
const PER_SHARD: Bytes = Bytes::mib(1536);

/// A way to hold a job on one machine of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holder<'a> {
    /// The kind of GPU.
    pub gpu: &'a Gpu,
    /// The number of GPUs over which the job is distributed; 1: it is not.
    pub gpus: u32,
    /// The cheapest instance type on demand with that many GPUs or more.
    pub instance: &'a InstanceType,
}

/// The GPUs that would hold a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice<'a> {
    /// The kinds of which one GPU holds the job, the cheapest first.
    pub single: Vec<Holder<'a>>,
    /// The kinds of which several GPUs of one machine hold it, sharded, the cheapest first.
    pub sharded: Vec<Holder<'a>>,
}

/// Returns the entries that would hold a job whose peak is `need`: for each kind of GPU, one GPU if it is enough,
/// otherwise the smallest number. Only kinds with an instance type are returned.
#[must_use]
pub fn advice(need: Bytes, catalogue: &Catalogue) -> Advice<'_> {
    let mut advice = Advice { single: Vec::new(), sharded: Vec::new() };
    for gpu in &catalogue.gpus {
        let Some(gpus) = least_gpus(need, gpu.usable()) else { continue };
        let large = catalogue.instances.iter().filter(|entry| entry.gpu == gpu.product && entry.gpus >= gpus);
        let cheapest = large.min_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour));
        if let Some(instance) = cheapest {
            let holders = if gpus == 1 { &mut advice.single } else { &mut advice.sharded };
            holders.push(Holder { gpu, gpus, instance });
        }
    }
    for holders in [&mut advice.single, &mut advice.sharded] {
        holders.sort_by(|a, b| a.instance.usd_per_hour.total_cmp(&b.instance.usd_per_hour));
    }
    advice
}

/// Returns the smallest number of GPUs that hold a job: 1, or a power of two up to 16.
fn least_gpus(need: Bytes, usable: Bytes) -> Option<u32> {
    if need <= usable {
        return Some(1);
    }
    let room = usable.saturating_sub(PER_SHARD).0;
    [2, 4, 8, 16].into_iter().find(|gpus| need.0.div_ceil(u64::from(*gpus)) <= room)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        architecture::Architecture,
        catalogue::built_in,
        memory::{self, Workload},
        spec::{Requested, TrainSpec, request::AdapterFields},
    };

    const LLAMA_70B: &str = r#"{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "tie_word_embeddings": false}"#;

    fn products<'a>(holders: &[Holder<'a>]) -> Vec<(&'a str, u32)> {
        holders.iter().map(|holder| (holder.gpu.product.as_str(), holder.gpus)).collect()
    }

    #[test]
    fn a_70b_adapter_in_4_bits_takes_one_large_gpu_or_several_small_ones() {
        // NF4 weights of a 70B model, adapter, optimizer and activations in bf16: QLoRA's paper reports 41 GB.
        let found = advice(Bytes(41_000_000_000), built_in());
        let single = products(&found.single);
        assert!(single.contains(&("NVIDIA-L40S", 1)) && single.contains(&("NVIDIA-A100-80GB-PCIe", 1)), "{single:?}");
        assert!(!single.contains(&("NVIDIA-L4", 1)));
        assert!(products(&found.sharded).contains(&("NVIDIA-L4", 2)), "{:?}", products(&found.sharded));
        assert_eq!(found.single[0].instance.id().to_string(), "azure.Standard_NC24ads_A100_v4.eastus");
    }

    #[test]
    fn this_builds_estimate_of_a_70b_job_fits_no_24_gb_gpu() {
        let architecture = Architecture::from_config_json(LLAMA_70B.as_bytes()).unwrap();
        let adapter = AdapterFields { rank: Some(16), ..AdapterFields::default() };
        let train = TrainSpec::check(&Requested { adapter, ..Requested::default() }, 100, 8192).unwrap();
        let work = Workload { architecture: &architecture, train: &train, longest_row: 512 };
        let found = advice(memory::smallest(work).peak, built_in());
        assert!(products(&found.single).iter().all(|(product, _)| *product != "NVIDIA-L4"));
        assert!(products(&found.single).contains(&("NVIDIA-H100-80GB-HBM3", 1)), "{:?}", products(&found.single));
    }

    #[test]
    fn a_model_that_no_machine_holds_has_no_advice() {
        let found = advice(Bytes(1 << 50), built_in());
        assert!(found.single.is_empty() && found.sharded.is_empty());
    }

    proptest! {
        /// Each holder has the memory, and a smaller need never takes more GPUs of a kind.
        #[test]
        fn every_holder_is_large_enough(need in 1_u64..2_000_000, less in 1_u64..2_000_000) {
            let (need, less) = (Bytes::mib(need), Bytes::mib(less.min(need)));
            let (found, smaller) = (advice(need, built_in()), advice(less, built_in()));
            for holder in found.single.iter().chain(&found.sharded) {
                prop_assert!(holder.gpu.usable().0 * u64::from(holder.gpus) >= need.0);
                prop_assert!(holder.instance.gpus >= holder.gpus && holder.instance.gpu == holder.gpu.product);
                let mut all = smaller.single.iter().chain(&smaller.sharded);
                let same = all.find(|other| other.gpu.product == holder.gpu.product);
                prop_assert!(same.is_some_and(|same| same.gpus <= holder.gpus));
            }
        }
    }
}
