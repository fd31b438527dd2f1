//! A LoRA adapter: two factors for each projection that it changes, with DoRA a magnitude too, in `f32`, read and
//! written in PEFT's format.
//!
//! Deliberately not supported: biases, rank patterns, additional trained modules. A file that requires one of them is
//! refused with the field's name, since ignoring it would give a different adapter.

use std::{cell::OnceCell, collections::HashMap, path::Path};

use attune_domain::{
    architecture::{Architecture, PROJECTIONS},
    peft::{self, Refusal},
    placement::Placement,
    spec::AdapterSpec,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    io::{
        tensor_file::{TensorFile, is_finite, write_tensors},
        weights::projection_path,
    },
    kernels::placement::options,
};

mod combine; // several adapters, merged into one

/// The factors of one projection: `W + s·b·a`; with DoRA, each row of that is scaled to the norm `magnitude`.
///
/// | field       | shape      | kind    |
/// |-------------|------------|---------|
/// | `a`         | `[r, in]`  | `Float` |
/// | `b`         | `[out, r]` | `Float` |
/// | `magnitude` | `[out]`    | `Float` |
///
/// Sources: Hu et al., arXiv:2106.09685, §4.1; Liu et al., arXiv:2402.09353, eq. 5.
#[derive(Debug)]
pub struct LoraPair {
    /// The first factor, applied to the input.
    pub a: Tensor,
    /// The second factor; initially zeros, so that an untrained adapter changes nothing.
    pub b: Tensor,
    /// DoRA's magnitude; initially the row norms of the base's weight.
    pub magnitude: Option<Tensor>,
    /// The ratio of `magnitude` to the row norms of the updated weight, cached for serving, where neither changes.
    pub(crate) row_scale: OnceCell<Tensor>,
}

impl LoraPair {
    pub(crate) fn new(a: Tensor, b: Tensor, magnitude: Option<Tensor>) -> Self {
        Self { a, b, magnitude, row_scale: OnceCell::new() }
    }

    /// Returns a pair with each tensor replaced by the result of `make`.
    pub(crate) fn map<E>(&self, make: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(Self::new(make(&self.a)?, make(&self.b)?, self.magnitude.as_ref().map(make).transpose()?))
    }

    /// Returns the tensors with the suffixes of PEFT's names, in a fixed order.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let factors = [("lora_A.weight", &self.a), ("lora_B.weight", &self.b)];
        factors.into_iter().chain(self.magnitude.iter().map(|magnitude| (MAGNITUDE, magnitude)))
    }

    /// Returns the tensors with the suffixes of PEFT's names, mutably.
    pub(crate) fn named_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let factors = [("lora_A.weight", &mut self.a), ("lora_B.weight", &mut self.b)];
        factors.into_iter().chain(self.magnitude.iter_mut().map(|magnitude| (MAGNITUDE, magnitude)))
    }
}

const MAGNITUDE: &str = "lora_magnitude_vector";

/// The factors of one block, indexed as [`PROJECTIONS`]; `None` where a projection has no factors.
pub type LayerPairs = [Option<LoraPair>; PROJECTIONS.len()];

/// An adapter in memory.
#[derive(Debug)]
pub struct LoraAdapter {
    spec: AdapterSpec,
    layers: Vec<LayerPairs>,
}

/// The base that an adapter belongs to, for `adapter_config.json`.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// The value of `base_model_name_or_path`.
    pub base_model: String,
}

impl LoraAdapter {
    /// Creates an adapter: `a` is Kaiming-uniform with `a=√5`, which is uniform in `±1/√in`; `b` is zero. The same seed
    /// gives the same numbers. Factors are in `f32`, on the device of `placement`.
    ///
    /// Source: `reset_lora_parameters` in PEFT's `tuners/lora/layer.py`.
    ///
    /// DoRA's magnitudes come from the base's weights: [`Decoder::new_adapter`](crate::decoder::Decoder::new_adapter)
    /// creates adapters of any kind.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`]: an unknown target, no target, a rank of 0, or DoRA; [`ModelError::Torch`].
    pub fn new(
        architecture: &Architecture,
        spec: AdapterSpec,
        seed: u64,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        if spec.use_dora {
            return Err(Refusal::new("use_dora", "true", "false without the base's weights").into());
        }
        Self::drawn(architecture, spec, seed, options(placement).1)
    }

    /// Creates an adapter as [`LoraAdapter::new`]; with DoRA the magnitudes are still missing.
    pub(crate) fn drawn(
        architecture: &Architecture,
        spec: AdapterSpec,
        seed: u64,
        device: Device,
    ) -> Result<Self, ModelError> {
        check(&spec)?;
        let mut random = Pcg64::seed_from_u64(seed);
        let rank = i64::from(spec.rank);
        let layers = each_pair(architecture, &spec, |_, _, outs, ins| {
            let bound = 1.0 / (ins as f32).sqrt();
            let count = usize::try_from(rank * ins).unwrap_or(0);
            let a: Vec<f32> = (0..count).map(|_| random.random_range(-bound..bound)).collect();
            let a = Tensor::f_from_slice(&a)?.f_reshape([rank, ins])?.f_to_device(device)?;
            let b = Tensor::f_zeros([outs, rank], (Kind::Float, device))?;
            Ok(LoraPair::new(a, b, None))
        })?;
        Ok(Self { spec, layers })
    }

    /// Reads a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`]: a file that cannot be read; [`ModelError::AdapterConfig`]: a kind of
    /// adapter that Attune does not support; [`ModelError::Missing`], [`ModelError::Unexpected`],
    /// [`ModelError::Shape`], [`ModelError::NotFinite`]: a tensor that does not fit this base.
    pub fn load(folder: &Path, architecture: &Architecture) -> Result<Self, ModelError> {
        let path = folder.join("adapter_config.json");
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let fields = serde_json::from_slice(&text)
            .map_err(|e| ModelError::file(&path, format!("not an adapter config: {e}")))?;
        let config = peft::read(fields).map_err(first)?;
        let file = TensorFile::open(&folder.join("adapter_model.safetensors"))?;
        Self::from_file(architecture, config.spec, &file)
    }

    /// Reads the factors of `spec` from a file with PEFT's tensor names.
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
            let a = read(factor_name(layer, projection, "lora_A.weight"), vec![rank, ins])?;
            let b = read(factor_name(layer, projection, "lora_B.weight"), vec![outs, rank])?;
            let magnitude =
                if spec.use_dora { Some(read(factor_name(layer, projection, MAGNITUDE), vec![outs])?) } else { None };
            Ok(LoraPair::new(a, b, magnitude))
        })?;
        known.sort();
        match file.names().into_iter().find(|name| known.binary_search(name).is_err()) {
            Some(name) => Err(ModelError::Unexpected { name, place: file.path().into() }),
            None => Ok(Self { spec, layers }),
        }
    }

    /// Writes a PEFT folder, replacing the files of an older adapter in it.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`]: it cannot be written; [`ModelError::Torch`].
    pub fn save(&self, folder: &Path, provenance: &Provenance) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        self.save_factors(&folder.join("adapter_model.safetensors"))?;
        let path = folder.join("adapter_config.json");
        let config = peft::write(&self.spec, &provenance.base_model);
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

    /// Returns every factor with PEFT's name, in a fixed order: by layer, by projection, `a` before `b` before the
    /// magnitude.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        named(&self.layers)
    }

    /// Returns what [`LoraAdapter::parameters`] does, mutably, and invalidates the cached `row_scale`.
    pub(crate) fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::new();
        for (layer, pairs) in self.layers.iter_mut().enumerate() {
            for (projection, pair) in PROJECTIONS.iter().zip(pairs) {
                let Some(pair) = pair else { continue };
                pair.row_scale.take();
                all.extend(pair.named_mut().map(|(factor, tensor)| (factor_name(layer, projection, factor), tensor)));
            }
        }
        all
    }

    /// Returns a deep copy, to restore later.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn snapshot(&self) -> Result<Self, ModelError> {
        Ok(Self { spec: self.spec.clone(), layers: map(&self.layers, |tensor| tensor.f_mul_scalar(1.0))? })
    }

    /// Returns the name of the first factor with a NaN or infinite value.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn not_finite(&self) -> Result<Option<String>, ModelError> {
        for (name, factor) in self.parameters() {
            if !is_finite(factor)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Returns the same factors with another dropout for further training.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`]: a dropout outside the range from 0 to below 1.
    pub fn with_dropout(mut self, lora_dropout: f64) -> Result<Self, ModelError> {
        self.spec.lora_dropout = lora_dropout;
        check(&self.spec)?;
        Ok(self)
    }

    /// Returns the adapter's spec.
    #[must_use]
    pub fn spec(&self) -> &AdapterSpec {
        &self.spec
    }

    /// Returns the scale: `lora_alpha / rank`, or `lora_alpha / √rank` with rsLoRA.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = f64::from(self.spec.rank);
        self.spec.lora_alpha / if self.spec.use_rslora { rank.sqrt() } else { rank }
    }

    /// Returns the size of the factors in memory, in bytes.
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

    /// Returns the factors of one block.
    pub(crate) fn layer(&self, layer: usize) -> Result<&LayerPairs, ModelError> {
        let refusal = || {
            ModelError::Input(format!("the adapter has {} layers, and layer {layer} is requested", self.layers.len()))
        };
        self.layers.get(layer).ok_or_else(refusal)
    }

    /// Returns the adapter in another kind or on another device.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let layers = map(&self.layers, |tensor| tensor.f_to_kind(kind)?.f_to_device(device))?;
        Ok(Self { spec: self.spec.clone(), layers })
    }
}

/// Returns layers with each tensor replaced by the result of `make`.
pub(crate) fn map<E>(layers: &[LayerPairs], make: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Vec<LayerPairs>, E> {
    let mut all = Vec::with_capacity(layers.len());
    for pairs in layers {
        let mut made = LayerPairs::default();
        for (place, pair) in made.iter_mut().zip(pairs) {
            *place = pair.as_ref().map(|pair| pair.map(&make)).transpose()?;
        }
        all.push(made);
    }
    Ok(all)
}

/// Returns the tensors of layers with PEFT's names, in the order of [`LoraAdapter::parameters`].
pub(crate) fn named(layers: &[LayerPairs]) -> Vec<(String, &Tensor)> {
    let mut all = Vec::new();
    for (layer, pairs) in layers.iter().enumerate() {
        for (projection, pair) in PROJECTIONS.iter().zip(pairs) {
            let Some(pair) = pair else { continue };
            all.extend(pair.named().map(|(factor, tensor)| (factor_name(layer, projection, factor), tensor)));
        }
    }
    all
}

/// Returns a factor's name, such as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
fn factor_name(layer: usize, projection: &str, factor: &str) -> String {
    format!("base_model.model.{}.{factor}", projection_path(layer, projection))
}

/// Returns the first refusal: reading stops there.
fn first(refused: Vec<Refusal>) -> ModelError {
    let first = refused.into_iter().next();
    first.unwrap_or_else(|| Refusal::new("", "nothing", "something")).into()
}

fn check(spec: &AdapterSpec) -> Result<(), ModelError> {
    const TARGETS: &str = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    let refuse = |field, given: String, allowed| Err(Refusal::new(field, given, allowed).into());
    if spec.rank == 0 {
        return refuse("r", "0".into(), "1 or more");
    }
    if !spec.lora_alpha.is_finite() {
        return refuse("lora_alpha", spec.lora_alpha.to_string(), "a finite number");
    }
    if spec.target_modules.is_empty() {
        return refuse("target_modules", "none".into(), TARGETS);
    }
    if !(0.0..1.0).contains(&spec.lora_dropout) {
        return refuse("lora_dropout", spec.lora_dropout.to_string(), "from 0 to below 1");
    }
    match spec.target_modules.iter().find(|name| !PROJECTIONS.contains(&name.as_str())) {
        Some(name) => refuse("target_modules", name.clone(), TARGETS),
        None => Ok(()),
    }
}

/// Calls `make(layer, projection, out, in)` for each projection of the spec's target modules.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny/llama")
    }

    fn architecture() -> Architecture {
        crate::io::weights::architecture(&tiny()).unwrap()
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
            ("bias", "all".into(), "bias: all is not supported; allowed: none"),
            ("peft_type", "IA3".into(), "peft_type: IA3"),
            ("rank_pattern", serde_json::json!({"q_proj": 8}), "rank_pattern: a map"),
            ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save: lm_head is not supported"),
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
