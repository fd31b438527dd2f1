//! Where a decoder's projections come from while it is read: the folder's weights, packed on the way, or a file of weights
//! that were packed before. Packing is the longest part of a start, and gives the same bytes every time.
//!
//! The file is written beside its place and renamed when whole, so one that is there is whole; its name must say what it
//! was made of, as the node's cache does with the base's digest.

use std::{collections::HashMap, fs, path::Path};

use attune_domain::spec::Quantization;
use tch::Tensor;

use crate::{
    error::ModelError,
    int8::Int8,
    nf4::Nf4,
    tensor_file::{TensorFile, write_tensors},
    weights::Weights,
};

/// Raised when the layout of the file changes.
const VERSION: &str = "1";

/// A projection's weight as it is held.
#[derive(Debug)]
pub(crate) enum Packed {
    Dense(Tensor),
    Nf4(Nf4),
    Int8(Int8),
}

/// The weights of a folder, and the packed ones that are known.
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) quantization: Quantization,
    known: Option<TensorFile>,
    /// What is to be written at the end.
    made: Vec<(String, Tensor)>,
}

impl<'a> Source<'a> {
    /// `cache` is where packed weights are, or will be. A file of another layout or another quantisation is made anew.
    pub(crate) fn new(weights: &'a Weights, quantization: Quantization, cache: Option<&Path>) -> Self {
        let metadata = metadata(quantization);
        let fits = |file: &TensorFile| metadata.iter().all(|(key, value)| file.metadata().get(key) == Some(value));
        let known = cache.and_then(|path| TensorFile::open(path).ok()).filter(fits);
        Self { weights, quantization, known, made: Vec::new() }
    }

    /// The weight of one projection, by its name in the folder.
    pub(crate) fn projection(&mut self, name: &str) -> Result<Packed, ModelError> {
        if self.quantization == Quantization::None {
            return Ok(Packed::Dense(self.weights.read(name)?));
        }
        if let Some(file) = &self.known {
            let tensors = |part: &str| file.read(&format!("{name}.{part}"));
            let shape = self.weights.shape(name)?;
            return Ok(match self.quantization {
                Quantization::Int8 => Packed::Int8(Int8::of(tensors("codes")?, tensors("scales")?)),
                Quantization::Nf4 { .. } => Packed::Nf4(Nf4::of(shape, tensors)?),
                Quantization::None => Packed::Dense(self.weights.read(name)?),
            });
        }
        let weight = self.weights.read(name)?;
        let (packed, parts) = match self.quantization {
            Quantization::Nf4 { double_quant } => {
                let packed = Nf4::quantize(&weight, double_quant)?;
                let parts = packed.tensors()?;
                (Packed::Nf4(packed), parts)
            }
            _ => {
                let packed = Int8::quantize(&weight)?;
                let (codes, scales) = packed.tensors();
                let parts = vec![("codes", codes.shallow_clone()), ("scales", scales.shallow_clone())];
                (Packed::Int8(packed), parts)
            }
        };
        self.made.extend(parts.into_iter().map(|(part, tensor)| (format!("{name}.{part}"), tensor)));
        Ok(packed)
    }

    /// Writes what was packed, for the next time.
    pub(crate) fn keep(self, cache: &Path) -> Result<(), ModelError> {
        if self.made.is_empty() {
            return Ok(());
        }
        if let Some(folder) = cache.parent() {
            fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        }
        let beside = cache.with_extension(format!("{}.part", std::process::id()));
        let tensors: Vec<(String, &Tensor)> = self.made.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        let written = write_tensors(&beside, &tensors, metadata(self.quantization))
            .and_then(|()| fs::rename(&beside, cache).map_err(ModelError::io(cache)));
        if written.is_err() {
            // It may never have come to be; the first error is the one to tell.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn metadata(quantization: Quantization) -> HashMap<String, String> {
    HashMap::from([("version".into(), VERSION.into()), ("quantization".into(), format!("{quantization:?}"))])
}
