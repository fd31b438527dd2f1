//! Machines and replicas in the status of an organization.

use attune_domain::offer::OfferDevice;
use attune_store::status::{Machine, ReplicaNode, ReplicaStatus};
use serde::Serialize;
use utoipa::ToSchema;

/// The first machines that the providers offer, and the number of all.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Machines {
    /// The first 100 machines, by provider and name.
    pub data: Vec<MachineView>,
    /// The number of machines.
    pub total: usize,
}

/// A machine that a provider offers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MachineView {
    /// The provider, such as `local`.
    pub provider: String,
    /// The provider's name for the machine.
    pub name: String,
    /// The kind of device: `cpu` or `cuda`.
    pub device: &'static str,
    /// The GPUs; `null` if there are none.
    pub gpu: Option<MachineGpuView>,
    /// `true` if the provider may reclaim the machine.
    pub spot: bool,
    /// The provider's name for the region; `null` if it has none.
    pub region: Option<String>,
    /// The price per hour in USD; 0 for one's own machine.
    pub usd_per_hour: f64,
    /// The total memory.
    pub memory_bytes: u64,
    /// The memory that runs and replicas of all organizations have reserved.
    pub reserved_memory_bytes: u64,
    /// The memory that is free at the moment.
    pub free_memory_bytes: u64,
    /// The number of runs of all organizations.
    pub runs: i64,
    /// The number of further runs that can start now, if they find enough memory.
    pub free_slots: usize,
    /// The number of replicas of all organizations.
    pub replicas: i64,
}

/// The GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MachineGpuView {
    /// The product's name.
    pub product: String,
    /// The number of GPUs.
    pub count: u32,
    /// The usable memory of one GPU.
    pub memory_bytes: u64,
}

/// A serving process.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReplicaStatusView {
    /// The replica's ID.
    pub id: String,
    /// The base model's name.
    pub model: String,
    /// The quantization of the base model: `none`, `int8`, `nf4` or `nf4-double`.
    pub quantization: String,
    /// The state: `wanted` until it is launched, `launching` until it has loaded the base model, then `ready`; `draining`
    /// while it completes its last requests.
    pub state: String,
    /// The provider; `null` until it is placed.
    pub provider: Option<String>,
    /// The provider's name for the machine; `null` until it is placed.
    pub machine: Option<String>,
    /// The reserved memory; `null` until it is placed.
    pub memory_bytes: Option<u64>,
    /// The seconds since its last request.
    pub idle_seconds: f64,
    /// The time of the request to start it, in Unix seconds.
    pub created_at: i64,
}

impl Machines {
    /// Creates the view of the first `most` machines.
    pub fn new(machines: Vec<Machine>, most: usize) -> Self {
        let total = machines.len();
        Self { data: machines.into_iter().take(most).map(MachineView::from).collect(), total }
    }
}

impl From<Machine> for MachineView {
    fn from(machine: Machine) -> Self {
        let Machine { offer, runs, replicas } = machine;
        let (device, free) = (offer.device.name(), offer.free());
        Self {
            provider: offer.provider,
            name: offer.name,
            device,
            gpu: gpu(offer.device),
            spot: offer.spot,
            region: offer.region,
            usd_per_hour: offer.micro_usd_per_hour as f64 / 1e6,
            memory_bytes: offer.memory.0,
            reserved_memory_bytes: offer.reserved.0,
            free_memory_bytes: free.0,
            runs,
            free_slots: offer.free_slots,
            replicas,
        }
    }
}

fn gpu(device: OfferDevice) -> Option<MachineGpuView> {
    match device {
        OfferDevice::Cpu => None,
        OfferDevice::Cuda { product, count, memory } => Some(MachineGpuView { product, count, memory_bytes: memory.0 }),
    }
}

impl From<ReplicaStatus> for ReplicaStatusView {
    fn from(replica: ReplicaStatus) -> Self {
        let (provider, machine, memory_bytes) = match replica.node {
            Some(ReplicaNode { provider, offer, memory }) => (Some(provider), Some(offer), Some(memory.0)),
            None => (None, None, None),
        };
        Self {
            id: replica.replica_id.to_string(),
            model: replica.model,
            quantization: replica.quantization,
            state: replica.state,
            provider,
            machine,
            memory_bytes,
            idle_seconds: replica.idle_seconds,
            created_at: replica.created_at.timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{bytes::Bytes, offer::Offer};

    use super::*;

    fn machine(name: &str, device: OfferDevice) -> Machine {
        let offer = Offer {
            reserved: Bytes(400),
            free_slots: 2,
            micro_usd_per_hour: 800_000,
            device,
            spot: true,
            region: Some("eu".into()),
            ..Offer::cpu("cloud", name, Bytes(1000), 2)
        };
        Machine { offer, runs: 1, replicas: 3 }
    }

    #[test]
    fn machines_beyond_the_maximum_are_counted() {
        let gpu = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 2, memory: Bytes(7) };
        let all = vec![machine("a", gpu), machine("b", OfferDevice::Cpu), machine("c", OfferDevice::Cpu)];
        let Machines { data, total } = Machines::new(all, 2);
        assert_eq!((data.len(), total), (2, 3));
        let want = MachineView {
            provider: "cloud".into(),
            name: "a".into(),
            device: "cuda",
            gpu: Some(MachineGpuView { product: "NVIDIA-L4".into(), count: 2, memory_bytes: 7 }),
            spot: true,
            region: Some("eu".into()),
            usd_per_hour: 0.8,
            memory_bytes: 1000,
            reserved_memory_bytes: 400,
            free_memory_bytes: 600,
            runs: 1,
            free_slots: 2,
            replicas: 3,
        };
        assert_eq!(data[0], want);
        assert_eq!((data[1].device, &data[1].gpu), ("cpu", &None));
    }
}
