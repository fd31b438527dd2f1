//! The kinds of nodes that are in the cluster, as offers. Pure.
//!
//! A node without GPUs is one slot, with nine tenths of its memory and processors: the rest is for what runs on every
//! node. A node with GPUs has a slot for each GPU or MIG instance, with its share of the node.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::api::resource::Quantity};

use super::{
    names::label,
    scheduling::{GPU_TAINT, PRODUCT, REGION, SPOT_TAINTS},
};
use crate::config::{
    kubernetes::{INSTANCE_TYPE, KubernetesOffer, SPOT},
    node_prices::NodePrices,
    offer_settings::{Gpu, MOST_SLOTS},
};

/// The label of the memory of a GPU in MiB.
const GPU_MEMORY: &str = "nvidia.com/gpu.memory";
/// The resource of a whole GPU.
const WHOLE_GPU: &str = "nvidia.com/gpu";
/// The start of the resource of a MIG instance.
const MIG: &str = "nvidia.com/mig-";
/// The amounts of memory of a kind are multiples of this: equal machines differ by a few KiB.
const STEP: u64 = 1 << 28;

/// Returns the kinds of nodes, with as many slots as all nodes of a kind have. A kind whose price is unknown has the
/// reason.
pub(super) fn kinds<'a>(nodes: impl Iterator<Item = &'a Node>, prices: NodePrices<'_>) -> Vec<KubernetesOffer> {
    let mut kinds: BTreeMap<String, KubernetesOffer> = BTreeMap::new();
    for slot in nodes.filter(|node| is_usable(node)).flat_map(|node| slots(node, prices)) {
        match kinds.get_mut(&slot.name) {
            Some(kind) => kind.slots = (kind.slots + slot.slots).min(MOST_SLOTS),
            None => drop(kinds.insert(slot.name.clone(), slot)),
        }
    }
    kinds.into_values().collect()
}

/// Returns whether the platform's pods may run on a node: it is ready, and has no taint that is for other pods.
fn is_usable(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_ready = conditions
        .is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
    let taints = spec.and_then(|spec| spec.taints.as_ref());
    let is_reserved = taints.is_some_and(|taints| {
        taints.iter().any(|taint| {
            let is_tolerated = taint.key == GPU_TAINT || SPOT_TAINTS.contains(&taint.key.as_str());
            taint.effect != "PreferNoSchedule" && !(is_tolerated && taint.effect == "NoSchedule")
        })
    });
    let is_cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    let is_built_for =
        label(node, "kubernetes.io/os") == Some("linux") && label(node, "kubernetes.io/arch") == Some("amd64");
    is_ready && !is_reserved && !is_cordoned && is_built_for
}

fn has_gpu_taint(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == GPU_TAINT))
}

/// The size of a slot, and their number on a node.
struct Share {
    gpu: Option<Gpu>,
    memory_bytes: u64,
    threads: u64,
    slots: u64,
}

/// Returns the price of an hour of a node, or the reason why it is unknown. Nodes without the labels of a cloud have
/// none.
fn price(node: &Node, spot: bool, prices: NodePrices<'_>) -> Result<f64, String> {
    let region = label(node, REGION);
    match label(node, INSTANCE_TYPE) {
        Some(instance_type) => prices.usd_per_hour(instance_type, region, spot),
        None if spot || region.is_some() => Err(format!("its nodes have no label {INSTANCE_TYPE}")),
        None => Ok(0.0),
    }
}

fn slots(node: &Node, prices: NodePrices<'_>) -> Vec<KubernetesOffer> {
    let spot = SPOT.iter().any(|(key, value)| label(node, key) == Some(*value));
    let price = price(node, spot, prices);
    let shares = shares(node);
    let total: u64 = shares.iter().map(|share| share.slots).sum();
    let offers = shares.into_iter().filter_map(|share| {
        let (memory_bytes, threads) = (share.memory_bytes / STEP * STEP, u32::try_from(share.threads).ok()?);
        let mut offer = KubernetesOffer {
            name: String::new(),
            instance_type: None,
            memory_bytes,
            threads,
            gpu: share.gpu,
            node_selector: selector(node),
            tolerations: Vec::new(),
            spot,
            region: label(node, REGION).map(str::to_owned),
            slots: u32::try_from(share.slots).unwrap_or(MOST_SLOTS).min(MOST_SLOTS),
            usd_per_hour: price.as_ref().ok().map(|price| price / total.max(1) as f64),
            no_price: price.as_ref().err().cloned(),
        };
        offer.name = name(&offer, label(node, INSTANCE_TYPE));
        (memory_bytes > 0 && threads > 0 && offer.slots > 0).then_some(offer)
    });
    offers.collect()
}

/// Returns the slots of a node.
fn shares(node: &Node) -> Vec<Share> {
    let Some(allocatable) = node.status.as_ref().and_then(|status| status.allocatable.as_ref()) else {
        return Vec::new();
    };
    let amount = |resource: &str| allocatable.get(resource).and_then(amount).unwrap_or(0.0);
    let (memory, threads) = (amount("memory") * 0.9, amount("cpu") * 0.9);
    let gpus: Vec<_> = allocatable
        .keys()
        .filter(|resource| *resource == WHOLE_GPU || resource.starts_with(MIG))
        .map(|resource| (resource.as_str(), amount(resource)))
        .filter(|(_, count)| *count >= 1.0)
        .collect();
    let total: f64 = gpus.iter().map(|(_, count)| *count).sum();
    if gpus.is_empty() {
        // The device plug-in of a node with GPUs may not have started yet.
        let is_without_gpus = label(node, PRODUCT).is_none() && !has_gpu_taint(node);
        let whole = Share { gpu: None, memory_bytes: memory as u64, threads: threads as u64, slots: 1 };
        return if is_without_gpus { vec![whole] } else { Vec::new() };
    }
    let share = |(resource, count): (&str, f64)| Share {
        gpu: gpu(node, resource),
        memory_bytes: (memory / total) as u64,
        threads: (threads / total) as u64,
        slots: count as u64,
    };
    gpus.into_iter().map(share).filter(|share| share.gpu.is_some()).collect()
}

/// Returns one GPU or MIG instance of a node; `None`: its product or its memory is unknown.
fn gpu(node: &Node, resource: &str) -> Option<Gpu> {
    let product = label(node, PRODUCT)?.to_owned();
    let memory_bytes = match resource.strip_prefix(MIG) {
        Some(profile) => gigabytes(profile.split('.'))?,
        None => label(node, GPU_MEMORY)
            .and_then(|mib| mib.parse::<u64>().ok())
            .map(|mib| mib << 20)
            .or_else(|| gigabytes(product.split('-')))?,
    };
    Some(Gpu { product, count: 1, memory_bytes, resource: resource.to_owned() })
}

/// Returns the bytes of the part of a product's name or a profile that is an amount, such as `80GB` or `10gb`.
fn gigabytes<'a>(mut parts: impl Iterator<Item = &'a str>) -> Option<u64> {
    parts
        .find_map(|part| part.to_ascii_lowercase().strip_suffix("gb")?.parse::<u64>().ok())
        .map(|gb| gb * 1_000_000_000)
}

/// Returns the labels that only nodes of the same kind have, so that the price and the risk are those of the offer.
fn selector(node: &Node) -> BTreeMap<String, String> {
    let kept = SPOT.iter().map(|(key, _)| *key).chain([INSTANCE_TYPE]);
    kept.filter_map(|key| Some((key.to_owned(), label(node, key)?.to_owned()))).collect()
}

fn name(offer: &KubernetesOffer, instance_type: Option<&str>) -> String {
    let gib = offer.memory_bytes >> 30;
    let device = offer.gpu.as_ref().map_or_else(
        || format!("cpu-{}x-{gib}GiB", offer.threads),
        |gpu| match gpu.resource.strip_prefix(MIG) {
            Some(profile) => format!("{}-mig-{profile}", gpu.product),
            None => format!("{}-{gib}GiB", gpu.product),
        },
    );
    let parts = [Some(device.as_str()), instance_type, offer.region.as_deref(), offer.spot.then_some("spot")];
    parts.into_iter().flatten().collect::<Vec<_>>().join("-").replace('/', "-")
}

/// Returns the number of a quantity: `31500m`, `256Gi`, `1e9`.
fn amount(quantity: &Quantity) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("", 1.0),
    ];
    let text = quantity.0.as_str();
    let scaled = |(suffix, factor): &(&str, f64)| Some(text.strip_suffix(*suffix)?.parse::<f64>().ok()? * factor);
    SUFFIXES.iter().find_map(scaled).filter(|amount| amount.is_finite() && *amount >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_a_number_with_a_suffix() {
        let amount = |text: &str| amount(&Quantity(text.into()));
        assert_eq!((amount("31500m"), amount("256Gi")), (Some(31.5), Some(274_877_906_944.0)));
        assert_eq!((amount("8"), amount("1e3"), amount("2k")), (Some(8.0), Some(1000.0), Some(2000.0)));
        assert_eq!((amount("many"), amount("-1"), amount("")), (None, None, None));
    }
}
