//! The source of a decoder's projections while it is loaded: the folder's weights, quantized on the way, or a cache
//! file of quantized weights. Quantizing is the longest part of a start, and gives the same bytes every time.
//!
//! The file is written to a temporary path and renamed when complete, so a file that exists is complete. Its name must
//! identify the base it was made from; the node's cache uses the base's digest.

use std::{collections::HashMap, fs, path::Path};

use attune_domain::spec::Quantization;
use tch::{Device, Tensor};

use crate::{
    error::ModelError,
    io::{
        tensor_file::{Stored, TensorFile, write_stored},
        weights::Weights,
    },
    quant::{gguf::GgufBlocks, int8::Int8, nf4::Nf4},
};

/// The version of the file's layout; increment it when the layout changes.
const VERSION: &str = "1";

/// A projection's weight in the form in which it is kept.
#[derive(Debug)]
pub(crate) enum Packed {
    Dense(Tensor),
    Nf4(Nf4),
    Int8(Int8),
    Blocks(GgufBlocks),
}

impl Packed {
    /// Returns the same weight in the same memory.
    fn shared(&self) -> Result<Self, ModelError> {
        Ok(match self {
            Self::Dense(weight) => Self::Dense(weight.shallow_clone()),
            Self::Nf4(weight) => Self::Nf4(weight.to_device(Device::Cpu)?),
            Self::Int8(weight) => Self::Int8(weight.to_device(Device::Cpu)?),
            Self::Blocks(weight) => Self::Blocks(weight.clone()),
        })
    }

    /// Returns the parts by name, for a file. A dense weight and blocks have none: they are in the folder.
    fn parts(&self) -> Result<Vec<(&'static str, Stored<'_>)>, ModelError> {
        Ok(match self {
            Self::Dense(_) | Self::Blocks(_) => Vec::new(),
            Self::Nf4(weight) => weight.parts(),
            Self::Int8(weight) => {
                let (codes, scales) = weight.tensors();
                vec![("codes", Stored::of(codes)?), ("scales", Stored::of(scales)?)]
            }
        })
    }
}

/// The weights of a folder, and the cache file of its quantized weights, if there is one.
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a Weights,
    quantization: Quantization,
    /// `true`: tensors that the folder has in GGUF's blocks stay in them, unless another quantization is requested.
    keep_blocks: bool,
    known: Option<TensorFile>,
    /// The path of the cache file to write, and its weights so far, which share the decoder's memory.
    to_keep: Option<(&'a Path, Vec<(String, Packed)>)>,
}

impl<'a> Source<'a> {
    /// Opens the source. `cache` is the path of the cache file, existing or not. A file with another layout or
    /// quantization is ignored and replaced.
    pub(crate) fn new(weights: &'a Weights, quantization: Quantization, cache: Option<&'a Path>) -> Self {
        let metadata = metadata(quantization);
        let fits = |file: &TensorFile| metadata.iter().all(|(key, value)| file.metadata().get(key) == Some(value));
        let known = cache.and_then(|path| TensorFile::open(path).ok()).filter(fits);
        let to_keep = cache.filter(|_| known.is_none()).map(|path| (path, Vec::new()));
        Self { weights, quantization, keep_blocks: false, known, to_keep }
    }

    /// Keeps the tensors that the folder has in GGUF's blocks in them, for serving.
    pub(crate) fn keep_blocks(self) -> Self {
        Self { keep_blocks: true, ..self }
    }

    /// Returns a tensor's blocks, if it has some and they are kept.
    pub(crate) fn blocks(&self, name: &str) -> Result<Option<GgufBlocks>, ModelError> {
        if self.keep_blocks { self.weights.blocks(name) } else { Ok(None) }
    }

    /// Returns the weight of one projection, by its name in the folder.
    pub(crate) fn projection(&mut self, name: &str) -> Result<Packed, ModelError> {
        let part = |file: &TensorFile, part: &str| file.read(&format!("{name}.{part}"));
        Ok(match (self.quantization, &self.known) {
            (Quantization::None, _) => match self.blocks(name)? {
                Some(blocks) => Packed::Blocks(blocks),
                None => Packed::Dense(self.weights.read(name)?),
            },
            (Quantization::Int8, Some(file)) => Packed::Int8(Int8::of(part(file, "codes")?, part(file, "scales")?)),
            (Quantization::Int8, None) => {
                let packed = Packed::Int8(Int8::quantize(&self.weights.read(name)?)?);
                self.remember(name, packed)?
            }
            (Quantization::Nf4 { .. }, Some(file)) => {
                Packed::Nf4(Nf4::of(self.weights.shape(name)?, |wanted| part(file, wanted))?)
            }
            (Quantization::Nf4 { double_quant }, None) => {
                let packed = Packed::Nf4(Nf4::quantize(&self.weights.read(name)?, double_quant)?);
                self.remember(name, packed)?
            }
        })
    }

    /// Notes a weight for the cache file, if one is to be written, and returns it.
    fn remember(&mut self, name: &str, packed: Packed) -> Result<Packed, ModelError> {
        if let Some((_, made)) = &mut self.to_keep {
            made.push((name.to_owned(), packed.shared()?));
        }
        Ok(packed)
    }

    /// Writes the quantized weights to the cache file, from the decoder's memory.
    pub(crate) fn keep(self) -> Result<(), ModelError> {
        let Some((cache, made)) = self.to_keep.filter(|(_, made)| !made.is_empty()) else { return Ok(()) };
        if let Some(folder) = cache.parent() {
            fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        }
        let beside = cache.with_extension(format!("{}.part", std::process::id()));
        let mut stored = Vec::new();
        for (name, packed) in &made {
            stored.extend(packed.parts()?.into_iter().map(|(part, stored)| (format!("{name}.{part}"), stored)));
        }
        let written = write_stored(&beside, stored, metadata(self.quantization))
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
