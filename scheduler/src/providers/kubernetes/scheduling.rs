//! The choice of nodes for a pod: labels that they must have, and taints that the pod tolerates.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
    Toleration,
};

use crate::config::kubernetes::{Effect, KubernetesOffer};

/// The label of a GPU's product, which NVIDIA's feature discovery sets.
pub(super) const PRODUCT: &str = "nvidia.com/gpu.product";
/// The label of a region.
pub(super) const REGION: &str = "topology.kubernetes.io/region";
/// The taint of nodes with GPUs.
pub(super) const GPU_TAINT: &str = "nvidia.com/gpu";
/// The taints of spot nodes: Google's and Azure's. AWS and Karpenter set none.
pub(super) const SPOT_TAINTS: [&str; 2] = ["cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"];

/// Returns the affinity of an offer's pods: the programs are built for Linux on x86-64.
pub(super) fn affinity(offer: &KubernetesOffer) -> Affinity {
    let mut required = vec![is("kubernetes.io/os", "linux"), is("kubernetes.io/arch", "amd64")];
    required.extend(offer.region.as_ref().map(|region| is(REGION, region)));
    required.extend(offer.gpu.as_ref().map(|gpu| is(PRODUCT, &gpu.product)));
    // Without a taint, nodes with GPUs would take pods that need none.
    let without_gpus = PreferredSchedulingTerm { weight: 100, preference: term(vec![absent(PRODUCT)]) };
    let node_affinity = NodeAffinity {
        preferred_during_scheduling_ignored_during_execution: offer.gpu.is_none().then(|| vec![without_gpus]),
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![term(required)],
        }),
    };
    Affinity { node_affinity: Some(node_affinity), ..Affinity::default() }
}

fn term(expressions: Vec<NodeSelectorRequirement>) -> NodeSelectorTerm {
    NodeSelectorTerm { match_expressions: Some(expressions), match_fields: None }
}

fn is(key: &str, value: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement { key: key.into(), operator: "In".into(), values: Some(vec![value.into()]) }
}

fn absent(key: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement { key: key.into(), operator: "DoesNotExist".into(), values: None }
}

/// Returns the tolerations of an offer's pods.
pub(super) fn tolerations(offer: &KubernetesOffer) -> Vec<Toleration> {
    let gpu = offer.gpu.iter().map(|_| any(GPU_TAINT));
    let spot = SPOT_TAINTS.iter().filter(|_| offer.spot).map(|key| any(key));
    let own = offer.tolerations.iter().map(|toleration| Toleration {
        key: Some(toleration.key.clone()),
        operator: Some(if toleration.value.is_some() { "Equal" } else { "Exists" }.into()),
        value: toleration.value.clone(),
        effect: toleration.effect.map(|effect| name(effect).to_owned()),
        toleration_seconds: None,
    });
    gpu.chain(spot).chain(own).collect()
}

/// Returns the toleration of a taint with any value that keeps pods away.
fn any(key: &str) -> Toleration {
    Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some("NoSchedule".into()),
        ..Toleration::default()
    }
}

const fn name(effect: Effect) -> &'static str {
    match effect {
        Effect::NoSchedule => "NoSchedule",
        Effect::PreferNoSchedule => "PreferNoSchedule",
        Effect::NoExecute => "NoExecute",
    }
}
