//! The request bodies of deployments.

use attune_domain::{
    autoscale::{MAX_COOLDOWN_SECONDS, MAX_REPLICAS, MAX_TARGET_CONCURRENCY, MIN_COOLDOWN_SECONDS},
    id::BaseModelId,
    offer::{ReplicaDevice, ReplicaKind},
    serve::{Engine, KvCacheDtype},
    spec::Quantization,
};
use attune_store::pools::deployment::Bounds;
use serde::Deserialize;
use strum::VariantArray;
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id::truncated, wire::adapter::double_option};

/// The maximum length of a name, in characters.
const MOST_NAME: usize = 64;

/// The request body for creating a deployment.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeployment {
    /// The name of the base model.
    #[schema(example = "smollm2-135m-instruct")]
    pub model: String,
    /// The quantization of the base: `none`, `int8`, `nf4` or `nf4-double`. Adapters are served over the quantization
    /// that they were trained over, so choose theirs. Defaults to that of base models without an adapter.
    #[schema(example = "nf4-double")]
    pub quantization: Option<String>,
    /// The program that generates the tokens: `attune`, `vllm` or `lorax`. The others run on Kubernetes only, serve
    /// bases without quantization, and support fewer parameters. Defaults to `attune`.
    #[schema(example = "attune")]
    pub engine: Option<String>,
    /// The devices that the replicas may use: `auto`, `cpu` or `cuda`. `vllm` and `lorax` require a GPU. Defaults to
    /// `auto`, any device that the engine can use.
    #[schema(example = "auto")]
    pub device: Option<String>,
    /// A smaller base model with the same vocabulary, which proposes tokens that the model verifies: the answers are
    /// the same at temperature 0, and have the same distribution at others. It is served in the same quantization.
    /// Defaults to none.
    #[schema(example = "smollm2-135m-instruct")]
    pub draft_model: Option<String>,
    /// The number type of keys and values in memory: `auto`, that of the computation, or `int8`, a quarter of the
    /// memory. Defaults to `auto`.
    #[schema(example = "auto")]
    pub kv_cache_dtype: Option<String>,
    /// Fine-tuned models over this base in this quantization, which replicas load when they start and keep in memory.
    #[schema(max_items = 32, example = json!(["records@prod"]))]
    pub pinned_adapters: Option<Vec<String>>,
    /// A label. Defaults to the name of the model.
    #[schema(max_length = 64)]
    pub name: Option<String>,
    /// The replicas that run all the time. All replicas of a deployment are charged by the hour. Defaults to 0.
    #[schema(minimum = 0, maximum = 32)]
    pub min_replicas: Option<u32>,
    /// The maximum number of replicas. Defaults to 1, or to `min_replicas` if that is more. The project's quota limits
    /// the sum over its deployments.
    #[schema(minimum = 1, maximum = 32)]
    pub max_replicas: Option<u32>,
    /// The requests per replica, in progress and waiting, that the autoscaler aims at. Defaults to the installation's.
    #[schema(minimum = 1, maximum = 256)]
    pub target_concurrency: Option<u32>,
    /// The seconds without a request after which the replicas beyond the minimum are stopped. Defaults to the
    /// installation's.
    #[schema(minimum = 30, maximum = 86_400)]
    pub cooldown_seconds: Option<u32>,
}

impl NewDeployment {
    /// Returns the name and the bounds, without pinned adapters.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn bounds(&self) -> Result<Bounds, ApiError> {
        let min_replicas = self.min_replicas.unwrap_or(0);
        checked(Bounds {
            name: self.name.clone().unwrap_or_else(|| self.model.chars().take(MOST_NAME).collect()),
            min_replicas,
            max_replicas: self.max_replicas.unwrap_or_else(|| min_replicas.max(1)),
            target_concurrency: self.target_concurrency,
            cooldown_seconds: self.cooldown_seconds,
            pinned_adapters: Vec::new(),
        })
    }

    /// Returns the kind of the replicas, which have this draft model.
    ///
    /// # Errors [`ApiError::Invalid`]: there is no engine, device or number type of this name, or the engine cannot use
    /// the device, the number type or a draft model, or serves no base in this quantization.
    pub fn kind(&self, draft: Option<BaseModelId>, quantization: Quantization) -> Result<ReplicaKind, ApiError> {
        let names = KindNames {
            engine: self.engine.as_deref(),
            device: self.device.as_deref(),
            kv_cache_dtype: self.kv_cache_dtype.as_deref(),
        };
        names.kind(ReplicaKind { draft, ..ReplicaKind::default() }, quantization)
    }

    /// Returns the quantization; `installed` if there is none.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: there is no quantization of this name.
    pub fn quantization(&self, installed: Quantization) -> Result<Quantization, ApiError> {
        let name = self.quantization.as_deref();
        Ok(named("quantization", name, &Quantization::ALL, Quantization::name)?.unwrap_or(installed))
    }
}

/// The request body for changing a deployment. Omitted fields are not changed, and the model and the quantization
/// cannot be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentChange {
    /// Fine-tuned models over this base in this quantization, which replicas load when they start and keep in memory.
    /// They replace those that are pinned now.
    #[schema(max_items = 32, example = json!(["records@prod"]))]
    pub pinned_adapters: Option<Vec<String>>,
    /// The program that generates the tokens: `attune`, `vllm` or `lorax`. Replicas with another one complete their
    /// requests once one with the new engine is ready.
    #[schema(example = "attune")]
    pub engine: Option<String>,
    /// The devices that the replicas may use: `auto`, `cpu` or `cuda`. Replicas are replaced as for `engine`.
    #[schema(example = "auto")]
    pub device: Option<String>,
    /// A smaller base model with the same vocabulary, which proposes tokens that the model verifies; `null`: none.
    /// Replicas are replaced as for `engine`.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<String>, example = "smollm2-135m-instruct")]
    pub draft_model: Option<Option<String>>,
    /// The number type of keys and values in memory: `auto` or `int8`. Replicas are replaced as for `engine`.
    #[schema(example = "auto")]
    pub kv_cache_dtype: Option<String>,
    /// A label.
    #[schema(max_length = 64)]
    pub name: Option<String>,
    /// The replicas that run all the time.
    #[schema(minimum = 0, maximum = 32)]
    pub min_replicas: Option<u32>,
    /// The maximum number of replicas.
    #[schema(minimum = 1, maximum = 32)]
    pub max_replicas: Option<u32>,
    /// The requests per replica that the autoscaler aims at.
    #[schema(minimum = 1, maximum = 256)]
    pub target_concurrency: Option<u32>,
    /// The seconds without a request after which the replicas beyond the minimum are stopped.
    #[schema(minimum = 30, maximum = 86_400)]
    pub cooldown_seconds: Option<u32>,
}

impl DeploymentChange {
    /// Returns the kind of the replicas after the change. `before` has the draft model after the change.
    ///
    /// # Errors
    /// As [`NewDeployment::kind`].
    pub fn kind(&self, before: ReplicaKind, quantization: Quantization) -> Result<ReplicaKind, ApiError> {
        let names = KindNames {
            engine: self.engine.as_deref(),
            device: self.device.as_deref(),
            kv_cache_dtype: self.kv_cache_dtype.as_deref(),
        };
        names.kind(before, quantization)
    }

    /// Returns the name and the bounds after the change, with the pinned adapters as they were.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn applied(self, before: Bounds) -> Result<Bounds, ApiError> {
        checked(Bounds {
            name: self.name.unwrap_or(before.name),
            min_replicas: self.min_replicas.unwrap_or(before.min_replicas),
            max_replicas: self.max_replicas.unwrap_or(before.max_replicas),
            target_concurrency: self.target_concurrency.or(before.target_concurrency),
            cooldown_seconds: self.cooldown_seconds.or(before.cooldown_seconds),
            pinned_adapters: before.pinned_adapters,
        })
    }
}

/// The names of a kind of replica in a request.
struct KindNames<'a> {
    engine: Option<&'a str>,
    device: Option<&'a str>,
    kv_cache_dtype: Option<&'a str>,
}

impl KindNames<'_> {
    /// Returns the kind of these names; `before` has those that are omitted.
    fn kind(&self, before: ReplicaKind, quantization: Quantization) -> Result<ReplicaKind, ApiError> {
        let engine = named("engine", self.engine, Engine::VARIANTS, Engine::name)?;
        let device = named("device", self.device, ReplicaDevice::VARIANTS, ReplicaDevice::name)?;
        let dtypes = KvCacheDtype::VARIANTS;
        let kv_cache_dtype = named("kv_cache_dtype", self.kv_cache_dtype, dtypes, KvCacheDtype::name)?;
        let kind = ReplicaKind {
            engine: engine.unwrap_or(before.engine),
            device: device.unwrap_or(before.device),
            kv_cache_dtype: kv_cache_dtype.unwrap_or(before.kv_cache_dtype),
            draft: before.draft,
        };
        let quantization = kind.engine.quantization_refusal(quantization).map(|reason| ("quantization", reason));
        let refusal = quantization.or_else(|| Some(("device", kind.refusal()?))).or_else(|| kind.decoding_refusal());
        match refusal {
            None => Ok(kind),
            Some((param, reason)) => Err(ApiError::invalid(param, format!("Invalid '{param}': {reason}."))),
        }
    }
}

/// Returns the value of this name.
fn named<T: Copy>(
    param: &str,
    name: Option<&str>,
    all: &[T],
    name_of: impl Fn(T) -> &'static str,
) -> Result<Option<T>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    if let Some(found) = all.iter().copied().find(|value| name_of(*value) == name) {
        return Ok(Some(found));
    }
    let allowed: Vec<&str> = all.iter().copied().map(name_of).collect();
    let (shown, allowed) = (truncated(name), allowed.join(", "));
    Err(ApiError::invalid(param, format!("Invalid '{param}': '{shown}'. Use one of {allowed}.")))
}

fn checked(bounds: Bounds) -> Result<Bounds, ApiError> {
    let length = bounds.name.chars().count();
    if length == 0 || length > MOST_NAME {
        let message = format!("Invalid 'name': {length} characters. Use 1 to {MOST_NAME}.");
        return Err(ApiError::invalid("name", message));
    }
    if bounds.name.contains('\0') {
        return Err(ApiError::invalid("name", "Invalid 'name': a zero character is not allowed."));
    }
    within("min_replicas", Some(bounds.min_replicas), 0, MAX_REPLICAS)?;
    within("max_replicas", Some(bounds.max_replicas), 1, MAX_REPLICAS)?;
    within("target_concurrency", bounds.target_concurrency, 1, MAX_TARGET_CONCURRENCY)?;
    within("cooldown_seconds", bounds.cooldown_seconds, MIN_COOLDOWN_SECONDS, MAX_COOLDOWN_SECONDS)?;
    if bounds.min_replicas > bounds.max_replicas {
        let Bounds { min_replicas, max_replicas, .. } = bounds;
        let message = format!("Invalid 'min_replicas': {min_replicas} is above max_replicas, {max_replicas}.");
        return Err(ApiError::invalid("min_replicas", message));
    }
    Ok(bounds)
}

fn within(name: &str, value: Option<u32>, least: u32, most: u32) -> Result<(), ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(ApiError::invalid(name, format!("Invalid '{name}': {value}. Use {least} to {most}.")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn bounds(fields: Value) -> Result<Bounds, (String, String)> {
        let mut body = json!({"model": "tiny"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let new: NewDeployment = serde_json::from_value(body).unwrap();
        new.bounds().map_err(|refused| {
            let error = refused.body().error;
            (error.param.unwrap_or_default(), error.message)
        })
    }

    #[test]
    fn the_defaults_follow_the_minimum() {
        let plain = bounds(json!({})).unwrap();
        assert_eq!((plain.min_replicas, plain.max_replicas, plain.name.as_str()), (0, 1, "tiny"));
        assert_eq!(bounds(json!({"min_replicas": 3})).unwrap().max_replicas, 3);
    }

    #[test]
    fn limit_the_bounds_of_a_deployment_are_named_with_their_range() {
        let cases = [
            (json!({"min_replicas": 2, "max_replicas": 1}), "min_replicas", "2 is above max_replicas, 1."),
            (json!({"max_replicas": 0}), "max_replicas", "0. Use 1 to 32."),
            (json!({"max_replicas": 33}), "max_replicas", "33. Use 1 to 32."),
            (json!({"target_concurrency": 0}), "target_concurrency", "0. Use 1 to 256."),
            (json!({"cooldown_seconds": 29}), "cooldown_seconds", "29. Use 30 to 86400."),
            (json!({"name": ""}), "name", "0 characters. Use 1 to 64."),
            (json!({"name": "a\u{0}"}), "name", "a zero character is not allowed."),
        ];
        for (fields, param, message) in cases {
            let refused = bounds(fields.clone()).unwrap_err();
            assert_eq!(refused, (param.to_owned(), format!("Invalid '{param}': {message}")), "{fields}");
        }
    }

    #[test]
    fn a_change_keeps_the_other_fields_and_is_checked_as_a_whole() {
        let before = bounds(json!({"min_replicas": 1, "max_replicas": 2, "cooldown_seconds": 60})).unwrap();
        let change =
            |fields: Value| serde_json::from_value::<DeploymentChange>(fields).unwrap().applied(before.clone());
        let after = change(json!({"max_replicas": 4})).unwrap();
        assert_eq!(after, Bounds { max_replicas: 4, ..before.clone() });
        assert!(change(json!({"min_replicas": 3})).is_err());
    }

    #[test]
    fn an_unknown_quantization_is_refused_with_the_known_ones() {
        let new: NewDeployment = serde_json::from_value(json!({"model": "tiny", "quantization": "fp4"})).unwrap();
        let refused = new.quantization(Quantization::None).unwrap_err().body().error.message;
        assert_eq!(refused, "Invalid 'quantization': 'fp4'. Use one of none, int8, nf4, nf4-double.");
    }

    #[test]
    fn another_engine_serves_only_a_base_without_quantization() {
        let engine = |name: &str, quantization| {
            let new: NewDeployment = serde_json::from_value(json!({"model": "tiny", "engine": name})).unwrap();
            new.kind(None, quantization).map(|kind| kind.engine).map_err(|refused| refused.body().error.message)
        };
        assert_eq!(engine("vllm", Quantization::None), Ok(Engine::Vllm));
        assert_eq!(engine("attune", Quantization::Int8), Ok(Engine::Attune));
        let refused = engine("lorax", Quantization::Int8).unwrap_err();
        assert!(refused.contains("LoRAX serves bases without quantization, not in int8"), "{refused}");
        let unknown = engine("tgi", Quantization::None).unwrap_err();
        assert_eq!(unknown, "Invalid 'engine': 'tgi'. Use one of attune, vllm, lorax.");
    }

    #[test]
    fn a_device_is_of_the_engine_and_a_change_keeps_what_it_does_not_name() {
        let kind = |fields: Value, before| {
            let change: DeploymentChange = serde_json::from_value(fields).unwrap();
            change.kind(before, Quantization::None).map_err(|refused| refused.body().error.message)
        };
        let before = ReplicaKind { engine: Engine::Vllm, device: ReplicaDevice::Cuda, ..ReplicaKind::default() };
        assert_eq!(kind(json!({}), before), Ok(before));
        let attune = ReplicaKind { device: ReplicaDevice::Cpu, ..ReplicaKind::default() };
        assert_eq!(kind(json!({"engine": "attune", "device": "cpu"}), before), Ok(attune));
        let refused = kind(json!({"device": "cpu"}), before).unwrap_err();
        assert_eq!(refused, "Invalid 'device': vLLM requires a GPU. Use cuda or auto, or engine attune.");
        let unknown = kind(json!({"device": "tpu"}), before).unwrap_err();
        assert_eq!(unknown, "Invalid 'device': 'tpu'. Use one of auto, cpu, cuda.");
    }

    #[test]
    fn decoding_is_set_by_name_and_refused_with_another_engine() {
        let kind = |fields: Value, before| {
            let change: DeploymentChange = serde_json::from_value(fields).unwrap();
            change.kind(before, Quantization::None).map_err(|refused| {
                let error = refused.body().error;
                (error.param.unwrap_or_default(), error.message)
            })
        };
        let before = ReplicaKind::default();
        let small = ReplicaKind { kv_cache_dtype: KvCacheDtype::Int8, ..before };
        assert_eq!(kind(json!({"kv_cache_dtype": "int8"}), before), Ok(small));
        assert_eq!(kind(json!({}), small), Ok(small));
        let (param, message) = kind(json!({"kv_cache_dtype": "fp8"}), before).unwrap_err();
        assert_eq!(param, "kv_cache_dtype");
        assert_eq!(message, "Invalid 'kv_cache_dtype': 'fp8'. Use one of auto, int8.");
        assert_eq!(kind(json!({"engine": "vllm"}), small).unwrap_err().0, "kv_cache_dtype");
        let drafts = ReplicaKind { draft: Some(BaseModelId::new(uuid::Uuid::from_u128(3))), ..before };
        assert_eq!(kind(json!({"engine": "vllm"}), drafts).unwrap_err().0, "draft_model");
        assert_eq!(kind(json!({"name": "x"}), drafts), Ok(drafts));
    }

    #[test]
    fn a_draft_model_that_is_omitted_is_not_one_that_is_removed() {
        let draft = |fields: Value| serde_json::from_value::<DeploymentChange>(fields).unwrap().draft_model;
        assert_eq!(draft(json!({})), None);
        assert_eq!(draft(json!({"draft_model": null})), Some(None));
        assert_eq!(draft(json!({"draft_model": "tiny"})), Some(Some("tiny".into())));
    }
}
