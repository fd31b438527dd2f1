//! The settings of a provider of the kind `kubernetes`.

use std::{collections::BTreeMap, path::PathBuf};

use attune_domain::{export::loads_with::vllm_max_lora_rank, serve::Engine};
use serde::Deserialize;

use super::offer_settings::{self, Gpu, OfferSettings, check_price};

/// The highest rank of an adapter that vLLM can be started with, of those that the platform trains.
const MOST_LORA_RANK: u32 = 256;

/// The label of the instance type of a node.
pub(crate) const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

/// The labels of spot nodes: Karpenter's, Amazon's, Google's and Azure's.
pub(crate) const SPOT: [(&str, &str); 4] = [
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
];

/// A `[[provider]]` section of the kind `kubernetes`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KubernetesConfig {
    /// The provider's name, which nodes' rows keep.
    #[serde(default = "kubernetes")]
    pub(crate) name: String,
    /// The folder on the scheduler's machine for text files of base models.
    pub(crate) work_dir: PathBuf,
    /// The kubeconfig file. Default: the service account of the pod that the scheduler runs in.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig file. Default: its current one.
    pub(crate) context: Option<String>,
    /// The namespace of the Jobs.
    #[serde(default = "attune")]
    pub(crate) namespace: String,
    /// The container image of trainers and replicas.
    pub(crate) image: String,
    /// The container image for offers with GPUs. Default: `image`.
    pub(crate) cuda_image: Option<String>,
    /// The container image of vLLM, such as `vllm/vllm-openai:TAG`, for deployments with this engine. Default: none;
    /// they are refused.
    pub(crate) vllm_image: Option<String>,
    /// The container image of LoRAX, such as `ghcr.io/predibase/lorax:TAG`. Default: none, as `vllm_image`.
    pub(crate) lorax_image: Option<String>,
    /// Additional arguments of vLLM and LoRAX, each for its own image, such as `--max-model-len`.
    #[serde(default)]
    pub(crate) engine_arguments: Vec<String>,
    /// The highest rank of an adapter on these engines.
    #[serde(default = "sixty_four")]
    pub(crate) max_lora_rank: u32,
    /// The number of adapters that vLLM computes with at the same time.
    #[serde(default = "sixteen")]
    pub(crate) max_loras: u32,
    /// The names of Secrets with registry credentials.
    #[serde(default)]
    pub(crate) image_pull_secrets: Vec<String>,
    /// The service account of the pods, without a token. Default: the namespace's.
    pub(crate) service_account: Option<String>,
    /// The priority class of the pods.
    pub(crate) priority_class: Option<String>,
    /// The Kueue queue that admits the Jobs. Default: none; they start at once.
    pub(crate) local_queue: Option<String>,
    /// The user and the group of the containers' processes.
    #[serde(default = "unprivileged")]
    pub(crate) run_as_user: u32,
    /// The time limit of a run or replica, in minutes.
    #[serde(default = "a_day")]
    pub(crate) time_limit_minutes: u32,
    /// Seconds between SIGTERM and SIGKILL when a pod is ended.
    #[serde(default = "two_minutes")]
    pub(crate) grace_seconds: u32,
    /// Seconds after which a request to the API server fails.
    #[serde(default = "ten")]
    pub(crate) request_seconds: u64,
    /// The port that replicas listen on, each at the address of its pod.
    #[serde(default = "serving_port")]
    pub(crate) serving_port: u16,
    /// The port of the metrics of replicas, each at the address of its pod. Default: replicas publish no metrics.
    pub(crate) metrics_port: Option<u16>,
    /// `true` if the pods' first address is an IPv6 address.
    #[serde(default)]
    pub(crate) ipv6: bool,
    /// `true` to offer the kinds of nodes that are in the cluster, in addition to `offer`.
    #[serde(default)]
    pub(crate) discover: bool,
    /// The price of an hour of a whole node by instance type, in US dollars, for the offers of `discover`. Default:
    /// that of the catalogue.
    #[serde(default)]
    pub(crate) instance_usd_per_hour: BTreeMap<String, f64>,
    /// The offers; never empty unless `discover` is set.
    #[serde(default, rename = "offer")]
    pub(crate) offers: Vec<KubernetesOffer>,
}

/// A `[[provider.offer]]` section: the resources of one pod.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KubernetesOffer {
    /// The offer's name.
    pub(crate) name: String,
    /// The instance type of the nodes, such as `aws:g6.xlarge`: an entry of the catalogue, with the defaults of the
    /// other keys. Default: none; `memory_bytes` and `threads` are required then.
    pub(crate) instance_type: Option<String>,
    /// The memory of a pod, in bytes: its limit, and its request unless the slots may share a node. 0: that of the
    /// instance type.
    #[serde(default)]
    pub(crate) memory_bytes: u64,
    /// The CPU threads of a pod: its request and its limit. 0: those of the instance type.
    #[serde(default)]
    pub(crate) threads: u32,
    /// The GPUs of a pod.
    pub(crate) gpu: Option<Gpu>,
    /// The labels that a node must have.
    #[serde(default)]
    pub(crate) node_selector: BTreeMap<String, String>,
    /// The taints that the pods tolerate, in addition to those of GPU nodes and of spot nodes where the offer has them.
    #[serde(default)]
    pub(crate) tolerations: Vec<Toleration>,
    /// `true` if the cloud may reclaim the nodes at any time.
    #[serde(default)]
    pub(crate) spot: bool,
    /// The region of the nodes, their label `topology.kubernetes.io/region`. Default: any.
    pub(crate) region: Option<String>,
    /// The maximum number of concurrent runs.
    #[serde(default = "one")]
    pub(crate) slots: u32,
    /// The price of an hour of a run, charged to its project, in US dollars. Default: that of the instance type, or 0.
    pub(crate) usd_per_hour: Option<f64>,
    /// The reason why the catalogue has no price for the instance type now; `None`: it has, or the offer has its own.
    #[serde(skip)]
    pub(crate) no_price: Option<String>,
}

/// A taint that pods tolerate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Toleration {
    /// The taint's key.
    pub(crate) key: String,
    /// The taint's value. Default: any.
    pub(crate) value: Option<String>,
    /// The taint's effect. Default: any.
    pub(crate) effect: Option<Effect>,
}

/// The effect of a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Effect {
    /// No new pods.
    NoSchedule,
    /// No new pods if another node is free.
    PreferNoSchedule,
    /// No new pods, and running ones are evicted.
    NoExecute,
}

const fn one() -> u32 {
    1
}

const fn ten() -> u64 {
    10
}

const fn sixteen() -> u32 {
    16
}

const fn sixty_four() -> u32 {
    64
}

const fn two_minutes() -> u32 {
    120
}

const fn a_day() -> u32 {
    24 * 60
}

const fn serving_port() -> u16 {
    8000
}

const fn unprivileged() -> u32 {
    65532
}

fn kubernetes() -> String {
    "kubernetes".into()
}

fn attune() -> String {
    "attune".into()
}

impl KubernetesOffer {
    /// Returns the settings that all offers have.
    pub(crate) fn settings(&self) -> OfferSettings<'_> {
        let is_of_catalogue = self.instance_type.is_some();
        OfferSettings {
            name: &self.name,
            memory_bytes: Some(self.memory_bytes).filter(|bytes| *bytes > 0 || !is_of_catalogue),
            threads: Some(self.threads).filter(|threads| *threads > 0 || !is_of_catalogue),
            slots: self.slots,
            usd_per_hour: self.usd_per_hour,
            gpu: self.gpu.as_ref(),
            spot: self.spot,
            region: self.region.as_deref(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let settings = self.settings();
        settings.check()?;
        if let Some(name) = &self.instance_type {
            // Without the key, the price is the catalogue's.
            return match self.usd_per_hour {
                Some(0.0) => Err(format!("usd_per_hour: 0 is no price of {name}. Remove the key, or set the price.")),
                _ => Ok(()),
            };
        }
        if let (Some(instance), None) = (self.node_selector.get(INSTANCE_TYPE), self.usd_per_hour) {
            return Err(format!(
                "usd_per_hour: there is no price for {instance}. Set it, or `instance_type`; 0 for own machines."
            ));
        }
        let is_spot = SPOT.iter().any(|(key, value)| self.node_selector.get(*key).is_some_and(|set| set == value));
        OfferSettings { spot: self.spot || is_spot, ..settings }.check_cloud_price()
    }
}

impl KubernetesConfig {
    /// Returns the image of an engine and the key that sets it; `None`: the engine has no image of its own.
    pub(crate) const fn engine_image(&self, engine: Engine) -> Option<(&'static str, Option<&String>)> {
        match engine {
            Engine::Attune => None,
            Engine::Vllm => Some(("vllm_image", self.vllm_image.as_ref())),
            Engine::Lorax => Some(("lorax_image", self.lorax_image.as_ref())),
        }
    }

    /// Checks the ranges of the values.
    ///
    /// # Errors
    /// The key, its value, and the allowed range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.offers.is_empty() && !self.discover {
            return Err(format!(
                "{name}.offer: there is none. Add a [[provider.offer]] section, or set `discover = true`."
            ));
        }
        let ranges = [
            ("time_limit_minutes", u64::from(self.time_limit_minutes), 1..=1_000_000),
            ("grace_seconds", u64::from(self.grace_seconds), 1..=3600),
            ("request_seconds", self.request_seconds, 1..=300),
            ("run_as_user", u64::from(self.run_as_user), 1..=i32::MAX as u64),
            ("serving_port", u64::from(self.serving_port), 1024..=65_535),
            ("max_loras", u64::from(self.max_loras), 1..=1024),
        ];
        for (key, value, range) in ranges {
            if !range.contains(&value) {
                return Err(format!("{name}.{key}: {value} is not from {} to {}", range.start(), range.end()));
            }
        }
        let rank = self.max_lora_rank;
        if vllm_max_lora_rank(rank) != rank || rank > MOST_LORA_RANK {
            return Err(format!("{name}.max_lora_rank: {rank} is not 8, 16, 32, 64, 128 or 256"));
        }
        match self.metrics_port {
            Some(0) => return Err(format!("{name}.metrics_port: 0 is not from 1 to 65535")),
            Some(port) if port == self.serving_port => {
                return Err(format!("{name}.metrics_port: {port} is serving_port too. Set a different port in each."));
            }
            _ => {}
        }
        for (instance, usd) in &self.instance_usd_per_hour {
            check_price(&format!("{name}.instance_usd_per_hour.{instance}"), *usd)?;
        }
        offer_settings::check_offers(name, self.offers.iter().map(|offer| (offer.name.as_str(), offer.check())))
    }
}

#[cfg(test)]
mod tests {
    use figment::{
        Figment,
        providers::{Format, Toml},
    };

    use super::*;

    const LEAST: &str = "work_dir = '/var/lib/attune'\nimage = 'registry.example/attune:1'\n";
    const OFFER: &str = "[[offer]]\nname = 'a100'\nmemory_bytes = 64_000_000_000\nthreads = 8\n";

    fn read(text: &str) -> Result<KubernetesConfig, String> {
        let config: KubernetesConfig =
            Figment::from(Toml::string(text)).extract().map_err(|error: figment::Error| error.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let gpu = "node_selector = { \"nvidia.com/gpu.product\" = \"A\" }\n\
                   tolerations = [{ key = 'team', value = 'ml', effect = 'NoSchedule' }]\n\
                   gpu = { product = 'NVIDIA-A100', memory_bytes = 80_000_000_000 }";
        let config = read(&format!("{LEAST}{OFFER}{gpu}")).unwrap();
        assert_eq!((config.name.as_str(), config.namespace.as_str()), ("kubernetes", "attune"));
        assert_eq!((config.time_limit_minutes, config.grace_seconds, config.run_as_user), (1440, 120, 65532));
        let offer = &config.offers[0];
        assert_eq!((offer.slots, offer.settings().micro_usd_per_hour(), offer.spot), (1, 0, false));
        assert_eq!(offer.node_selector["nvidia.com/gpu.product"], "A");
        assert_eq!(offer.tolerations[0].effect, Some(Effect::NoSchedule));
        let gpu = offer.gpu.as_ref().unwrap();
        assert_eq!((gpu.count, gpu.resource.as_str()), (1, "nvidia.com/gpu"));
        assert!(read(&format!("{LEAST}discover = true")).unwrap().offers.is_empty());
    }

    #[test]
    fn limit_a_value_out_of_range_is_named() {
        let refused = |top: &str, offer: &str| read(&format!("{LEAST}{top}\n{OFFER}{offer}")).unwrap_err();
        let minutes = refused("time_limit_minutes = 0", "");
        assert_eq!(minutes, "kubernetes.time_limit_minutes: 0 is not from 1 to 1000000");
        assert_eq!(refused("name = 'x'\nrun_as_user = 0", ""), "x.run_as_user: 0 is not from 1 to 2147483647");
        assert_eq!(refused("serving_port = 80", ""), "kubernetes.serving_port: 80 is not from 1024 to 65535");
        assert_eq!(refused("metrics_port = 0", ""), "kubernetes.metrics_port: 0 is not from 1 to 65535");
        let port = refused("metrics_port = 8000", "");
        assert_eq!(port, "kubernetes.metrics_port: 8000 is serving_port too. Set a different port in each.");
        assert_eq!(refused("", "slots = 65"), "kubernetes.offer a100: slots: 65 is not from 1 to 64");
        let rank = refused("max_lora_rank = 20", "");
        assert_eq!(rank, "kubernetes.max_lora_rank: 20 is not 8, 16, 32, 64, 128 or 256");
        let price = refused("", "usd_per_hour = -1");
        assert_eq!(price, "kubernetes.offer a100: usd_per_hour: -1 is not from 0 to 1000000000");
        let price = refused("instance_usd_per_hour = { m5 = -1 }", "");
        assert_eq!(price, "kubernetes.instance_usd_per_hour.m5: -1 is not from 0 to 1000000000");
        let gpu = refused("", "gpu = { product = 'A', memory_bytes = 1, count = 1 }");
        assert_eq!(gpu, "kubernetes.offer a100: gpu.memory_bytes: 1 is below 1048576");
        let spot = "kubernetes.offer a100: usd_per_hour: 0 is no price of a spot machine. Set its price.";
        assert_eq!(refused("", "spot = true"), spot);
        let selected = "node_selector = { 'karpenter.sh/capacity-type' = 'spot' }\nusd_per_hour = 0";
        assert_eq!(refused("", selected), spot);
        let instance = refused("", "node_selector = { 'node.kubernetes.io/instance-type' = 'm5' }");
        assert!(instance.starts_with("kubernetes.offer a100: usd_per_hour: there is no price for m5."), "{instance}");
        let region = refused("", "region = 'eu'");
        assert!(region.contains("a100: usd_per_hour: there is no price for the region eu."), "{region}");
        assert!(read(&format!("{LEAST}{OFFER}region = 'eu'\nusd_per_hour = 0")).is_ok(), "machines of their owner");
        let free = refused("", "instance_type = 'aws:g6.xlarge'\nusd_per_hour = 0");
        assert!(free.contains("a100: usd_per_hour: 0 is no price of aws:g6.xlarge."), "{free}");
        let twice = refused("", OFFER);
        assert_eq!(twice, "kubernetes.offer: two have the name `a100`. Set a different `name` in each.");
        let small = read(&format!("{LEAST}{}", OFFER.replace("64_000_000_000", "0"))).unwrap_err();
        assert_eq!(small, "kubernetes.offer a100: memory_bytes: 0 is below 1048576");
        let none = read(LEAST).unwrap_err();
        assert!(none.starts_with("kubernetes.offer: there is none."), "{none}");
        assert!(refused("", "gpus = 1").contains("gpus"));
        assert!(refused("", "tolerations = [{ key = 'a', effect = 'Never' }]").contains("Never"));
    }
}
