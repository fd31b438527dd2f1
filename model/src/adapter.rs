//! A LoRA adapter: two factors for each projection that it corrects, in `f32`, read and written as PEFT does.
//!
//! Deliberately absent: dropout, biases, DoRA, rank patterns, further trained modules. A file that asks for one of them is
//! refused by name, since running it without would be another adapter.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use attune_domain::{
    architecture::{Architecture, PROJECTIONS},
    spec::AdapterSpec,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    tensor_file::{TensorFile, write_tensors},
    weights::projection_path,
};

/// The two factors of one projection's correction: `Δ = scale · b · a`.
///
/// | field | shape      | kind    |
/// |-------|------------|---------|
/// | `a`   | `[r, in]`  | `Float` |
/// | `b`   | `[out, r]` | `Float` |
///
/// Source: Hu et al., arXiv:2106.09685, §4.1.
#[derive(Debug)]
pub struct LoraPair {
    /// Applied first.
    pub a: Tensor,
    /// Applied second; zeros at first, so that an untrained adapter changes nothing.
    pub b: Tensor,
}

/// The factors of one block, at the places of [`PROJECTIONS`]; `None` where there is no correction.
pub type LayerPairs = [Option<LoraPair>; PROJECTIONS.len()];

/// An adapter in memory.
#[derive(Debug)]
pub struct LoraAdapter {
    spec: AdapterSpec,
    layers: Vec<LayerPairs>,
}

/// Where the base came from and whether the file is for training: what PEFT wants to know beside the numbers.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// `base_model_name_or_path`.
    pub base_model: String,
}

impl LoraAdapter {
    /// A new adapter: `a` Kaiming-uniform with √5, that is from `±1/√in`; `b` zeros. The same seed gives the same numbers.
    ///
    /// Source: `reset_lora_parameters` in PEFT's `tuners/lora/layer.py`.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`]: an unknown target, or none, or a rank of 0; [`ModelError::Torch`].
    pub fn new(architecture: &Architecture, spec: AdapterSpec, seed: u64) -> Result<Self, ModelError> {
        check(&spec)?;
        let mut random = Pcg64::seed_from_u64(seed);
        let rank = i64::from(spec.rank);
        let layers = each_pair(architecture, &spec, |_, _, outs, ins| {
            let bound = 1.0 / (ins as f32).sqrt();
            let count = usize::try_from(rank * ins).unwrap_or(0);
            let a: Vec<f32> = (0..count).map(|_| random.random_range(-bound..bound)).collect();
            let a = Tensor::f_from_slice(&a)?.f_reshape([rank, ins])?;
            let b = Tensor::f_zeros([outs, rank], (Kind::Float, Device::Cpu))?;
            Ok(LoraPair { a, b })
        })?;
        Ok(Self { spec, layers })
    }

    /// Reads a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`]: a file that cannot be read; [`ModelError::AdapterConfig`]: a kind of
    /// adapter that Attune does not run; [`ModelError::Missing`], [`ModelError::Unexpected`], [`ModelError::Shape`],
    /// [`ModelError::NotFinite`]: a tensor that does not fit this base.
    pub fn load(folder: &Path, architecture: &Architecture) -> Result<Self, ModelError> {
        let path = folder.join("adapter_config.json");
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let config: PeftConfig = serde_json::from_slice(&text)
            .map_err(|e| ModelError::file(&path, format!("not an adapter config: {e}")))?;
        let spec = config.spec()?;
        let file = TensorFile::open(&folder.join("adapter_model.safetensors"))?;
        Self::from_file(architecture, spec, &file)
    }

    /// Reads the factors of `spec` from a file of PEFT's names; see [`LoraAdapter::load`] for the errors.
    ///
    /// # Errors
    /// As [`LoraAdapter::load`].
    pub fn from_file(architecture: &Architecture, spec: AdapterSpec, file: &TensorFile) -> Result<Self, ModelError> {
        check(&spec)?;
        let rank = i64::from(spec.rank);
        let mut known = Vec::new();
        let mut read = |name: String, want: Vec<i64>| {
            let missing = || ModelError::Missing { name: name.clone(), place: file.path().into() };
            let got = file.shape(&name).ok_or_else(missing)?;
            if got != want {
                return Err(ModelError::Shape { name, want, got });
            }
            let tensor = file.read_floats(&name)?;
            known.push(name);
            Ok(tensor)
        };
        let layers = each_pair(architecture, &spec, |layer, projection, outs, ins| {
            let a = read(factor_name(layer, projection, 'A'), vec![rank, ins])?;
            let b = read(factor_name(layer, projection, 'B'), vec![outs, rank])?;
            Ok(LoraPair { a, b })
        })?;
        known.sort();
        match file.names().into_iter().find(|name| known.binary_search(name).is_err()) {
            Some(name) => Err(ModelError::Unexpected { name, place: file.path().into() }),
            None => Ok(Self { spec, layers }),
        }
    }

    /// Writes a PEFT folder; files of an older adapter in it are replaced.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`]: it cannot be written; [`ModelError::Torch`].
    pub fn save(&self, folder: &Path, provenance: &Provenance) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        self.save_factors(&folder.join("adapter_model.safetensors"))?;
        let path = folder.join("adapter_config.json");
        let config = PeftConfig::of(&self.spec, provenance);
        let text = serde_json::to_vec_pretty(&config).map_err(|e| ModelError::file(&path, e.to_string()))?;
        std::fs::write(&path, text).map_err(ModelError::io(&path))
    }

    /// Writes `adapter_model.safetensors` alone.
    ///
    /// # Errors
    /// [`ModelError::File`], [`ModelError::Torch`].
    pub fn save_factors(&self, path: &Path) -> Result<(), ModelError> {
        write_tensors(path, &self.parameters(), HashMap::from([("format".into(), "pt".into())]))
    }

    /// Every factor with PEFT's name, in a fixed order: by layer, by projection, `a` before `b`.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut all = Vec::new();
        for (layer, pairs) in self.layers.iter().enumerate() {
            for (projection, pair) in PROJECTIONS.iter().zip(pairs) {
                let Some(pair) = pair else { continue };
                all.push((factor_name(layer, projection, 'A'), &pair.a));
                all.push((factor_name(layer, projection, 'B'), &pair.b));
            }
        }
        all
    }

    /// What it was made to be.
    #[must_use]
    pub fn spec(&self) -> &AdapterSpec {
        &self.spec
    }

    /// `lora_alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.spec.lora_alpha / f64::from(self.spec.rank)
    }

    /// Bytes that its factors take in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parameters().iter().map(|(_, tensor)| tensor.numel() as u64 * 4).sum()
    }

    pub(crate) fn layers(&self) -> &[LayerPairs] {
        &self.layers
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [LayerPairs] {
        &mut self.layers
    }

    /// The factors of one block.
    pub(crate) fn layer(&self, layer: usize) -> Result<&LayerPairs, ModelError> {
        let refusal = || {
            ModelError::Input(format!("the adapter has {} layers, and layer {layer} is asked for", self.layers.len()))
        };
        self.layers.get(layer).ok_or_else(refusal)
    }

    /// The same adapter in another kind or on another device.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let moved = |tensor: &Tensor| tensor.f_to_kind(kind)?.f_to_device(device);
        let mut layers = Vec::with_capacity(self.layers.len());
        for pairs in &self.layers {
            let mut made = LayerPairs::default();
            for (place, pair) in made.iter_mut().zip(pairs) {
                if let Some(pair) = pair {
                    *place = Some(LoraPair { a: moved(&pair.a)?, b: moved(&pair.b)? });
                }
            }
            layers.push(made);
        }
        Ok(Self { spec: self.spec.clone(), layers })
    }
}

/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
pub(crate) fn factor_name(layer: usize, projection: &str, factor: char) -> String {
    format!("base_model.model.{}.lora_{factor}.weight", projection_path(layer, projection))
}

fn check(spec: &AdapterSpec) -> Result<(), ModelError> {
    const TARGETS: &str = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    let refuse = |field, given: String, allowed| Err(ModelError::AdapterConfig { field, given, allowed });
    if spec.rank == 0 {
        return refuse("r", "0".into(), "1 or more");
    }
    if !spec.lora_alpha.is_finite() {
        return refuse("lora_alpha", spec.lora_alpha.to_string(), "a finite number");
    }
    if spec.target_modules.is_empty() {
        return refuse("target_modules", "none".into(), TARGETS);
    }
    match spec.target_modules.iter().find(|name| !PROJECTIONS.contains(&name.as_str())) {
        Some(name) => refuse("target_modules", name.clone(), TARGETS),
        None => Ok(()),
    }
}

/// Calls `make(layer, projection, out, in)` for each projection that has a correction.
fn each_pair(
    architecture: &Architecture,
    spec: &AdapterSpec,
    mut make: impl FnMut(usize, &str, i64, i64) -> Result<LoraPair, ModelError>,
) -> Result<Vec<LayerPairs>, ModelError> {
    let mut layers = Vec::new();
    for layer in 0..usize::try_from(architecture.num_hidden_layers).unwrap_or(0) {
        let mut pairs = LayerPairs::default();
        for (place, name) in pairs.iter_mut().zip(PROJECTIONS) {
            if !spec.target_modules.iter().any(|target| target == name) {
                continue;
            }
            let Some((outs, ins)) = architecture.projection(name) else { continue };
            let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            *place = Some(make(layer, name, int(outs), int(ins))?);
        }
        layers.push(pairs);
    }
    Ok(layers)
}

/// `adapter_config.json`. What Attune does not run is read only to be refused.
#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Targets,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    layers_to_transform: Option<serde_json::Value>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, serde_json::Value>,
}

/// PEFT writes a list; the shorthand `all-linear` is kept as it was typed.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Targets {
    List(Vec<String>),
    Word(String),
}

fn none() -> String {
    "none".into()
}

impl PeftConfig {
    fn of(spec: &AdapterSpec, provenance: &Provenance) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(provenance.base_model.clone()),
            r: spec.rank,
            lora_alpha: spec.lora_alpha,
            lora_dropout: 0.0,
            target_modules: Targets::List(spec.target_modules.clone()),
            bias: none(),
            fan_in_fan_out: false,
            use_dora: false,
            use_rslora: false,
            inference_mode: true,
            modules_to_save: None,
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }

    fn spec(self) -> Result<AdapterSpec, ModelError> {
        let empty = |list: Option<&[String]>| list.is_none_or(<[String]>::is_empty);
        let wrong = [
            ("peft_type", self.peft_type != "LORA", self.peft_type.clone(), "LORA"),
            ("bias", self.bias != "none", self.bias.clone(), "none"),
            ("fan_in_fan_out", self.fan_in_fan_out, "true".into(), "false"),
            ("use_dora", self.use_dora, "true".into(), "false"),
            ("use_rslora", self.use_rslora, "true".into(), "false"),
            ("modules_to_save", !empty(self.modules_to_save.as_deref()), "a list".into(), "null"),
            ("layers_to_transform", self.layers_to_transform.is_some_and(|v| !v.is_null()), "a list".into(), "null"),
            ("rank_pattern", !self.rank_pattern.is_empty(), "a map".into(), "empty"),
            ("alpha_pattern", !self.alpha_pattern.is_empty(), "a map".into(), "empty"),
        ];
        if let Some((field, _, given, allowed)) = wrong.into_iter().find(|(_, is_wrong, ..)| *is_wrong) {
            return Err(ModelError::AdapterConfig { field, given, allowed });
        }
        let named = match self.target_modules {
            Targets::List(list) => list,
            Targets::Word(word) if word == "all-linear" => PROJECTIONS.map(str::to_owned).to_vec(),
            Targets::Word(word) => vec![word],
        };
        // In the order of a block, whatever the file's: two folders with the same numbers are then the same adapter.
        let mut target_modules: Vec<String> =
            PROJECTIONS.iter().filter(|name| named.iter().any(|n| n == *name)).map(ToString::to_string).collect();
        target_modules.extend(named.into_iter().filter(|name| !PROJECTIONS.contains(&name.as_str())));
        Ok(AdapterSpec {
            rank: self.r,
            lora_alpha: self.lora_alpha,
            target_modules,
            lora_dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny/llama")
    }

    fn architecture() -> Architecture {
        crate::weights::architecture(&tiny()).unwrap()
    }

    /// Loads the fixture with one field of its config set.
    fn with(field: &str, value: serde_json::Value) -> Result<LoraAdapter, ModelError> {
        let (theirs, copy) = (tiny().join("adapter"), tempfile::tempdir().unwrap());
        std::fs::copy(theirs.join("adapter_model.safetensors"), copy.path().join("adapter_model.safetensors")).unwrap();
        let text = std::fs::read(theirs.join("adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        config[field] = value;
        std::fs::write(copy.path().join("adapter_config.json"), config.to_string()).unwrap();
        LoraAdapter::load(copy.path(), &architecture())
    }

    #[test]
    fn what_would_be_another_adapter_is_refused_by_field() {
        for (field, value, words) in [
            ("use_dora", true.into(), "use_dora: true is not supported; allowed: false"),
            ("use_rslora", true.into(), "use_rslora: true"),
            ("bias", "all".into(), "bias: all is not supported; allowed: none"),
            ("peft_type", "IA3".into(), "peft_type: IA3"),
            ("rank_pattern", serde_json::json!({"q_proj": 8}), "rank_pattern: a map"),
            ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save: a list"),
            ("layers_to_transform", serde_json::json!([0]), "layers_to_transform"),
            ("r", 0.into(), "r: 0"),
            ("target_modules", serde_json::json!(["q_proj", "lm_head"]), "target_modules: lm_head"),
            ("target_modules", serde_json::json!([]), "target_modules: none"),
        ] {
            let refused = with(field, value).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn tensors_that_are_missing_too_many_or_of_another_rank_are_named() {
        let fewer = with("target_modules", serde_json::json!(["q_proj", "v_proj", "o_proj"])).unwrap_err();
        assert!(matches!(&fewer, ModelError::Unexpected { name, .. } if name.contains("down_proj")), "{fewer}");
        let more = with("target_modules", serde_json::json!("all-linear")).unwrap_err();
        assert!(matches!(&more, ModelError::Missing { name, .. } if name.contains("k_proj")), "{more}");
        let rank = with("r", 8.into()).unwrap_err();
        assert!(matches!(&rank, ModelError::Shape { want, got, .. } if want == &[8, 64] && got == &[4, 64]), "{rank}");
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused() {
        let adapter = LoraAdapter::load(&tiny().join("adapter"), &architecture()).unwrap();
        let _ = adapter.layers[1][0].as_ref().unwrap().b.shallow_clone().fill_(f64::INFINITY);
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path(), &Provenance::default()).unwrap();
        let refused = LoraAdapter::load(folder.path(), &architecture()).unwrap_err();
        assert!(
            matches!(&refused, ModelError::NotFinite(name) if name.ends_with("layers.1.self_attn.q_proj.lora_B.weight"))
        );
    }
}
