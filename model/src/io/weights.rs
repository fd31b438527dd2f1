//! The weights of a Hugging Face folder. Before the first tensor is read, it is checked that every tensor that the
//! architecture needs exists and has its shape, and that there are no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use attune_domain::{
    architecture::{Architecture, gguf_blocks::BlockKind},
    weights,
};
use tch::Tensor;

use crate::{error::ModelError, io::tensor_file::TensorFile, quant::gguf::GgufBlocks};

/// The `.safetensors` files of a folder, opened and checked against an architecture.
pub struct Weights {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// The index in `files` of the file with each tensor.
    places: BTreeMap<String, usize>,
    /// The kind and the shape `[out, in]` of each tensor that is in the blocks of a GGUF file.
    blocks: BTreeMap<String, (BlockKind, [i64; 2])>,
}

/// Reads the `config.json` of a folder.
///
/// # Errors
/// [`ModelError::Io`]: it cannot be read. [`ModelError::Architecture`]: Attune does not support it.
pub fn architecture(folder: &Path) -> Result<Architecture, ModelError> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
    Ok(Architecture::from_config_json(&text)?)
}

/// Returns [`attune_domain::weights::projection_path`], for a layer index of type `usize`.
#[must_use]
pub fn projection_path(layer: usize, projection: &str) -> String {
    weights::projection_path(layer as u64, projection)
}

/// Returns [`attune_domain::weights::expected`], with shapes in libtorch's `i64`.
#[must_use]
pub fn expected(architecture: &Architecture) -> BTreeMap<String, Vec<i64>> {
    let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    weights::expected(architecture)
        .into_iter()
        .map(|(name, shape)| (name, shape.into_iter().map(int).collect()))
        .collect()
}

impl Weights {
    /// Opens the `.safetensors` files of a folder, and checks them against `architecture`.
    ///
    /// # Errors
    /// [`ModelError::File`]: no such file in the folder, one is truncated, or a tensor is in two of them;
    /// [`ModelError::Missing`], [`ModelError::Unexpected`], [`ModelError::Shape`]: the first tensor, by name, that does
    /// not fit; [`ModelError::Io`].
    pub fn open(folder: &Path, architecture: &Architecture) -> Result<Self, ModelError> {
        let (places, blocks) = (BTreeMap::new(), BTreeMap::new());
        let mut weights = Self { folder: folder.into(), files: Vec::new(), places, blocks };
        for path in weight_files(folder)? {
            let file = TensorFile::open(&path)?;
            for name in file.names() {
                if weights.places.contains_key(&name) {
                    return Err(ModelError::file(&path, format!("tensor '{name}' is in another file too")));
                }
                weights.places.insert(name, weights.files.len());
            }
            weights.files.push(file);
        }
        let wanted = expected(architecture);
        for (name, want) in &wanted {
            let file = weights.file(name)?;
            let got = file.shape(name).unwrap_or_default();
            if let (true, Some(kind), &[outputs, inputs]) = (file.is_bytes(name), block_kind(&got, want), &want[..]) {
                weights.blocks.insert(name.clone(), (kind, [outputs, inputs]));
            } else if got != *want {
                return Err(ModelError::Shape { name: name.clone(), want: want.clone(), got });
            }
        }
        let extra = weights
            .places
            .keys()
            .find(|name| !wanted.contains_key(*name) && !weights::is_superfluous(name, architecture));
        match extra {
            Some(name) => Err(ModelError::Unexpected { name: name.clone(), place: folder.into() }),
            None => Ok(weights),
        }
    }

    fn file(&self, name: &str) -> Result<&TensorFile, ModelError> {
        let place = self.places.get(name).and_then(|&at| self.files.get(at));
        place.ok_or_else(|| ModelError::Missing { name: name.into(), place: self.folder.clone() })
    }

    /// Returns the shape of a two-dimensional tensor; of one in blocks, `[out, in]`.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::Shape`].
    pub(crate) fn shape(&self, name: &str) -> Result<[i64; 2], ModelError> {
        if let Some((_, shape)) = self.blocks.get(name) {
            return Ok(*shape);
        }
        let got = self.file(name)?.shape(name).unwrap_or_default();
        let shape = <[i64; 2]>::try_from(got);
        shape.map_err(|got| ModelError::Shape { name: name.into(), want: vec![0, 0], got })
    }

    /// Reads one tensor as `Float`, dequantized if it is in blocks, and checks that every number in it is finite.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::NotFinite`], [`ModelError::Io`], [`ModelError::Torch`].
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        match self.blocks(name)? {
            Some(blocks) => blocks.dequantize(),
            None => self.file(name)?.read_floats(name),
        }
    }

    /// Reads the blocks of a tensor; `None`: it is not in the blocks of a GGUF file.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub fn blocks(&self, name: &str) -> Result<Option<GgufBlocks>, ModelError> {
        let Some((kind, [outputs, inputs])) = self.blocks.get(name) else { return Ok(None) };
        let count = |side: &i64| usize::try_from(*side).unwrap_or(0);
        let bytes = self.file(name)?.read_bytes(name)?;
        GgufBlocks::new(name, *kind, (count(outputs), count(inputs)), bytes).map(Some)
    }
}

/// Returns the kind of the blocks that a tensor of the shape `want` has in bytes of the shape `got`.
fn block_kind(got: &[i64], want: &[i64]) -> Option<BlockKind> {
    let sides = |shape: &[i64]| shape.iter().map(|&side| u64::try_from(side).unwrap_or(0)).collect::<Vec<_>>();
    BlockKind::of_shape(&sides(got), &sides(want))
}

/// Returns the files that `model.safetensors.index.json` names, if it exists; else every `.safetensors` file of the
/// folder, sorted.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let text = std::fs::read(&index).map_err(ModelError::io(&index))?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| ModelError::file(&index, e.to_string()))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        if let Some(outside) = names.iter().find(|name| name.contains(['/', '\\'])) {
            return Err(ModelError::file(folder, format!("the index names '{outside}', which is not in the folder")));
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ModelError::io(folder))? {
        let path = entry.map_err(ModelError::io(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(ModelError::file(folder, "there is no .safetensors file in it"));
    }
    files.sort();
    Ok(files)
}
