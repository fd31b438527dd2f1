//! The offers of the nodes that are in the cluster.

use std::collections::BTreeMap;

use attune_domain::{bytes::Bytes, catalogue::built_in, offer::OfferDevice};
use attune_process::error_chain::chain;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::{
    provider_at, recorded,
    server::{Answer, Server, status},
    until,
};
use crate::{
    config::{kubernetes::KubernetesOffer, node_prices::NodePrices},
    providers::{kubernetes::discovery, provider::Provider},
};

/// The date of the built-in entries of the catalogue, in Unix seconds.
const NOW: i64 = 20_787 * 86_400;

fn kinds(nodes: &[Value]) -> Vec<KubernetesOffer> {
    let nodes: Vec<Node> = nodes.iter().map(|node| serde_json::from_value(node.clone()).unwrap()).collect();
    let own = BTreeMap::from([("m7i.4xlarge".to_owned(), 0.8)]);
    let prices = NodePrices { own: &own, catalogue: built_in(), now: NOW };
    discovery::kinds(nodes.iter(), prices)
}

/// Returns a ready node with these labels and resources.
fn node(name: &str, labels: &Value, allocatable: &Value) -> Value {
    let mut node = json!({"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {
        "allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}});
    for (key, value) in [("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")] {
        node["metadata"]["labels"][key] = json!(value);
    }
    node
}

fn cpu_node(name: &str) -> Value {
    node(name, &json!({}), &json!({"cpu": "15890m", "memory": "64327068Ki"}))
}

#[test]
fn the_recorded_nodes_are_kinds_with_a_slot_for_each_gpu() {
    let kinds = kinds(recorded("nodes")["items"].as_array().unwrap());
    let summary: Vec<_> = kinds.iter().map(|kind| (kind.name.as_str(), kind.slots, kind.threads)).collect();
    let wanted =
        [("NVIDIA-A100-SXM4-80GB-28GiB", 8, 3), ("NVIDIA-H100-80GB-HBM3-28GiB", 8, 3), ("cpu-28x-230GiB", 1, 28)];
    assert_eq!(summary, wanted);
    let gpu = kinds[1].gpu.as_ref().unwrap();
    assert_eq!((gpu.memory_bytes, gpu.resource.as_str()), (80_000_000_000, "nvidia.com/gpu"));
}

#[test]
fn nodes_of_a_kind_are_its_slots_and_a_kind_has_its_price_region_and_labels() {
    let labels = json!({"node.kubernetes.io/instance-type": "m7i.4xlarge", "topology.kubernetes.io/region": "eu",
        "karpenter.sh/capacity-type": "spot"});
    let paid = node("c", &labels, &json!({"cpu": "16", "memory": "64Gi"}));
    let kinds = kinds(&[cpu_node("a"), paid, cpu_node("b")]);
    let names: Vec<_> = kinds.iter().map(|kind| (kind.name.as_str(), kind.slots)).collect();
    assert_eq!(names, [("cpu-14x-55GiB", 2), ("cpu-14x-57GiB-m7i.4xlarge-eu-spot", 1)]);
    let paid = &kinds[1];
    assert_eq!((paid.settings().micro_usd_per_hour(), paid.spot, paid.region.as_deref()), (800_000, true, Some("eu")));
    assert_eq!(paid.node_selector["karpenter.sh/capacity-type"], "spot");
    assert!(kinds[0].node_selector.is_empty());
}

#[test]
fn nodes_of_a_cloud_have_the_price_of_the_catalogue_or_the_reason_why_it_is_unknown() {
    let kind = |labels: Value| kinds(&[node("a", &labels, &json!({"cpu": "16", "memory": "64Gi"}))]).remove(0);
    let (instance_type, region) = ("node.kubernetes.io/instance-type", "topology.kubernetes.io/region");
    let known = kind(json!({instance_type: "g6.xlarge", region: "us-east-1"}));
    let entry = built_in().named("aws:g6.xlarge", Some("us-east-1")).unwrap();
    assert_eq!((known.usd_per_hour, known.no_price), (Some(entry.usd_per_hour), None));
    for (labels, said) in [
        (json!({instance_type: "m7i.large", region: "eu"}), "has a price of m7i.large in eu"),
        (json!({region: "eu"}), "its nodes have no label node.kubernetes.io/instance-type"),
        (json!({"karpenter.sh/capacity-type": "spot"}), "its nodes have no label"),
    ] {
        let unknown = kind(labels);
        assert!(unknown.no_price.as_ref().unwrap().contains(said), "{:?}", unknown.no_price);
        assert!(unknown.slots("kubernetes").all(|offer| offer.no_price == unknown.no_price));
    }
    assert_eq!((kind(json!({})).usd_per_hour, kind(json!({})).no_price), (Some(0.0), None), "machines of their owner");
}

#[test]
fn mig_instances_are_slots_with_the_memory_of_their_profile() {
    let labels = json!({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"});
    let resources =
        json!({"cpu": "32", "memory": "256Gi", "nvidia.com/mig-1g.10gb": "4", "nvidia.com/mig-3g.40gb": "1"});
    let kinds = kinds(&[node("a", &labels, &resources)]);
    let found: Vec<_> = kinds.iter().map(|kind| (kind.slots, kind.gpu.as_ref().unwrap())).collect();
    assert_eq!(
        (found[0].0, found[0].1.memory_bytes, found[0].1.resource.as_str()),
        (4, 10_000_000_000, "nvidia.com/mig-1g.10gb")
    );
    assert_eq!((found[1].0, found[1].1.memory_bytes), (1, 40_000_000_000));
    assert_eq!(kinds[0].name, "NVIDIA-A100-SXM4-80GB-mig-1g.10gb");
}

#[test]
fn nodes_that_are_for_others_or_not_ready_are_no_offers() {
    let with = |change: fn(&mut Value)| {
        let mut node = cpu_node("a");
        change(&mut node);
        kinds(&[node])
    };
    assert_eq!(with(|_| {}).len(), 1);
    let refused: [fn(&mut Value); 7] = [
        |node| {
            node["spec"]["taints"] = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}])
        },
        |node| node["spec"]["taints"] = json!([{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]),
        |node| node["spec"]["unschedulable"] = json!(true),
        |node| node["status"]["conditions"][0]["status"] = json!("Unknown"),
        |node| node["metadata"]["labels"]["kubernetes.io/arch"] = json!("arm64"),
        |node| node["metadata"]["labels"]["nvidia.com/gpu.product"] = json!("the plug-in has not started"),
        |node| node["status"]["allocatable"]["memory"] = json!("garbage"),
    ];
    for change in refused {
        assert_eq!(with(change), []);
    }
}

#[tokio::test]
async fn discovered_kinds_are_offers_after_the_configured_ones_and_stay_while_nodes_are_away() {
    let server = Server::start().await;
    for node in recorded("nodes")["items"].as_array().unwrap() {
        server.put("nodes", node.clone());
    }
    let forbidden = "nodes is forbidden: User \"attune\" cannot list resource \"nodes\"";
    for _ in 0..3 {
        server.answer("GET nodes", Answer::Status(403, status(403, "Forbidden", forbidden), None));
    }
    let kubernetes = provider_at(&server.address.to_string(), &json!({"discover": true})).await;
    until("the error", async || {
        kubernetes.offers().await.is_err_and(|error| {
            chain(&error).contains("does not allow the scheduler to list nodes in the whole cluster")
        })
    })
    .await;
    until("the offers", async || kubernetes.offers().await.is_ok()).await;
    let offers = kubernetes.offers().await.unwrap();
    assert_eq!(offers.len(), 2 + 8 + 8 + 1);
    assert_eq!((offers[0].name.as_str(), &offers[0].device), ("cpu/1", &OfferDevice::Cpu));
    let a100 = offers.iter().find(|offer| offer.name.starts_with("NVIDIA-A100")).unwrap();
    let product = "NVIDIA-A100-SXM4-80GB".to_owned();
    assert_eq!(a100.device, OfferDevice::Cuda { product, count: 1, memory: Bytes(80_000_000_000) });
    server.remove("nodes", "cpu-0");
    until("the watch", async || server.get("nodes", "cpu-0").is_none()).await;
    assert_eq!(kubernetes.offers().await.unwrap().len(), offers.len(), "an autoscaler may start it again");
}
