//! The source of a decoder's projections while it is loaded: the folder's weights, quantized on the way, or a cache
//! file of quantized weights. Quantizing is the longest part of a start, and gives the same bytes every time.
//!
//! The file is written to a temporary path and renamed when complete, so a file that exists is complete. Its name must
//! identify the base it was made from; the node's cache uses the base's digest.

use std::{collections::HashMap, fs, path::Path};

use attune_domain::spec::Quantization;
use tch::Tensor;

use crate::{
    error::ModelError,
    io::{
        tensor_file::{TensorFile, write_tensors},
        weights::Weights,
    },
    quant::{int8::Int8, nf4::Nf4},
};

/// The version of the file's layout; increment it when the layout changes.
const VERSION: &str = "1";

/// A projection's weight in the form in which it is kept.
#[derive(Debug)]
pub(crate) enum Packed {
    Dense(Tensor),
    Nf4(Nf4),
    Int8(Int8),
}

/// The weights of a folder, and the cache file of its quantized weights, if there is one.
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) quantization: Quantization,
    known: Option<TensorFile>,
    /// The path of the cache file to write, and its tensors so far.
    to_keep: Option<(&'a Path, Vec<(String, Tensor)>)>,
}

impl<'a> Source<'a> {
    /// Opens the source. `cache` is the path of the cache file, existing or not. A file with another layout or
    /// quantization is ignored and replaced.
    pub(crate) fn new(weights: &'a Weights, quantization: Quantization, cache: Option<&'a Path>) -> Self {
        let metadata = metadata(quantization);
        let fits = |file: &TensorFile| metadata.iter().all(|(key, value)| file.metadata().get(key) == Some(value));
        let known = cache.and_then(|path| TensorFile::open(path).ok()).filter(fits);
        let to_keep = cache.filter(|_| known.is_none()).map(|path| (path, Vec::new()));
        Self { weights, quantization, known, to_keep }
    }

    /// Returns the weight of one projection, by its name in the folder.
    pub(crate) fn projection(&mut self, name: &str) -> Result<Packed, ModelError> {
        let part = |file: &TensorFile, part: &str| file.read(&format!("{name}.{part}"));
        Ok(match (self.quantization, &self.known) {
            (Quantization::None, _) => Packed::Dense(self.weights.read(name)?),
            (Quantization::Int8, Some(file)) => Packed::Int8(Int8::of(part(file, "codes")?, part(file, "scales")?)),
            (Quantization::Int8, None) => {
                let packed = Int8::quantize(&self.weights.read(name)?)?;
                let (codes, scales) = packed.tensors();
                self.remember(name, || Ok(vec![("codes", codes.shallow_clone()), ("scales", scales.shallow_clone())]))?;
                Packed::Int8(packed)
            }
            (Quantization::Nf4 { .. }, Some(file)) => {
                Packed::Nf4(Nf4::of(self.weights.shape(name)?, |wanted| part(file, wanted))?)
            }
            (Quantization::Nf4 { double_quant }, None) => {
                let packed = Nf4::quantize(&self.weights.read(name)?, double_quant)?;
                self.remember(name, || packed.tensors())?;
                Packed::Nf4(packed)
            }
        })
    }

    /// Keeps the parts of a weight until they are written. Without a cache path, `parts` is not called.
    fn remember(
        &mut self,
        name: &str,
        parts: impl FnOnce() -> Result<Vec<(&'static str, Tensor)>, ModelError>,
    ) -> Result<(), ModelError> {
        if let Some((_, made)) = &mut self.to_keep {
            made.extend(parts()?.into_iter().map(|(part, tensor)| (format!("{name}.{part}"), tensor)));
        }
        Ok(())
    }

    /// Writes the quantized weights to the cache file.
    pub(crate) fn keep(self) -> Result<(), ModelError> {
        let Some((cache, made)) = self.to_keep.filter(|(_, made)| !made.is_empty()) else { return Ok(()) };
        if let Some(folder) = cache.parent() {
            fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        }
        let beside = cache.with_extension(format!("{}.part", std::process::id()));
        let tensors: Vec<(String, &Tensor)> = made.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        let written = write_tensors(&beside, &tensors, metadata(self.quantization))
            .and_then(|()| fs::rename(&beside, cache).map_err(ModelError::io(cache)));
        if written.is_err() {
            // The file may not exist; the first error is the one to report.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn metadata(quantization: Quantization) -> HashMap<String, String> {
    HashMap::from([("version".into(), VERSION.into()), ("quantization".into(), format!("{quantization:?}"))])
}
