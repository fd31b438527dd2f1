//! The record of a folder's tensors while the headers of its files are read.

use std::collections::{HashMap, HashSet};

use attune_domain::{
    architecture::{
        Architecture,
        gguf_blocks::{BlockKind, KeptBlocks},
    },
    run::Blob,
    weights::{self, Expected, kept_blocks},
};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use crate::http::path_id::truncated;

/// The record of the expected tensors that the files contain. It stores only names from the files, so its memory does
/// not depend on the number of layers in `config.json`.
pub(crate) struct FoundTensors {
    expected: Expected,
    architecture: Architecture,
    seen: HashSet<String>,
    /// The kinds of the tensors that are in blocks of a GGUF file.
    blocks: HashMap<String, BlockKind>,
}

impl FoundTensors {
    /// Returns the record before the first file.
    pub(crate) fn new(architecture: &Architecture) -> Self {
        let (expected, architecture) = (Expected::new(architecture), architecture.clone());
        Self { expected, architecture, seen: HashSet::new(), blocks: HashMap::new() }
    }

    /// Adds the header of a file; the error is a clause without a final period.
    pub(crate) fn add(&mut self, file: &Blob, text: &[u8]) -> Result<(), String> {
        let whole = |reason: String| format!("{} is not a whole safetensors file: {reason}", file.name);
        let header: Metadata = serde_json::from_slice(text).map_err(|e| whole(e.to_string()))?;
        let bytes = 8 + text.len() as u64 + header.data_len() as u64;
        if bytes != file.bytes.0 {
            return Err(whole(format!("its header declares {bytes} bytes, but it has {}", file.bytes.0)));
        }
        for (name, info) in header.tensors() {
            let wrong = self.check(&name, info);
            if let Some(wrong) = wrong {
                return Err(format!("{}: {wrong}", file.name));
            }
            if let Some(kind) = self.kind(&name, info) {
                self.blocks.insert(name.clone(), kind);
            }
            self.seen.insert(name);
        }
        Ok(())
    }

    /// Returns the kind of the blocks that a tensor is stored in; `None`: it is not stored in blocks.
    fn kind(&self, name: &str, info: &TensorInfo) -> Option<BlockKind> {
        let shape = self.expected.shape(name).filter(|_| info.dtype == Dtype::U8)?;
        let stored: Vec<u64> = info.shape.iter().take(3).map(|&side| side as u64).collect();
        BlockKind::of_shape(&stored, shape)
    }

    fn check(&self, name: &str, info: &TensorInfo) -> Option<String> {
        let (shown, shape) = (truncated(name), || info.shape.iter().map(|&side| side as u64));
        if self.seen.contains(name) {
            return Some(format!("tensor '{shown}' is in another file too"));
        }
        match self.expected.shape(name) {
            None if weights::is_superfluous(name, &self.architecture) => None,
            None => Some(format!("'{shown}' is not a tensor of this architecture")),
            Some(_) if self.kind(name, info).is_some() => None,
            Some(want) if !shape().eq(want.iter().copied()) => {
                let have: Vec<u64> = shape().take(8).collect();
                Some(format!("'{shown}' has the shape {have:?}, not {want:?}"))
            }
            Some(_) if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                Some(format!("'{shown}' is {}; F32, F16 and BF16 are supported", info.dtype))
            }
            Some(_) => None,
        }
    }

    /// Checks, after all files, that no tensor is missing, and returns the weights that are in blocks. Iterates over at
    /// most one name more than the files contain.
    pub(crate) fn finish(self) -> Result<Option<KeptBlocks>, String> {
        let Some((missing, _)) = self.expected.iter().find(|(name, _)| !self.seen.contains(name)) else {
            return Ok(kept_blocks(&self.architecture, |name| self.blocks.get(name).copied()));
        };
        let there = self.seen.iter().filter(|name| self.expected.shape(name).is_some()).count() as u64;
        Err(format!("The tensor '{missing}' is missing, and {} more", self.expected.count().saturating_sub(there + 1)))
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{bytes::Bytes, digest::Sha256};

    use super::*;

    #[test]
    fn tensors_in_the_blocks_of_a_gguf_file_are_counted_and_those_of_another_size_are_refused() {
        let config = include_str!("../../../domain/testdata/tiny.json");
        let architecture = Architecture::from_config_json(config.as_bytes()).unwrap();
        let header = |row: &dyn Fn(u64) -> u64| {
            let (mut entries, mut at) = (serde_json::Map::new(), 0);
            for (name, shape) in Expected::new(&architecture).iter() {
                let (dtype, stored, width) = match shape {
                    &[outputs, inputs] => ("U8", vec![outputs, row(inputs)], 1),
                    all => ("F32", all.to_vec(), 4),
                };
                let end = at + width * stored.iter().product::<u64>();
                let entry = serde_json::json!({"dtype": dtype, "shape": stored, "data_offsets": [at, end]});
                entries.insert(name, entry);
                at = end;
            }
            (serde_json::Value::Object(entries).to_string(), at)
        };
        let found = |row: &dyn Fn(u64) -> u64| {
            let (text, data) = header(row);
            let bytes = Bytes(8 + text.len() as u64 + data);
            let file = Blob { name: "model.safetensors".into(), sha256: Sha256::from_digest([1; 32]), bytes };
            let mut found = FoundTensors::new(&architecture);
            found.add(&file, text.as_bytes())?;
            found.finish()
        };
        let kept = found(&|inputs| inputs / 32 * 18).unwrap().unwrap();
        assert_eq!(kept.projection_weights, architecture.projection_weights());
        assert_eq!(kept.embedding_bytes, architecture.embedding_weights() / 32 * 18);
        let refused = found(&|inputs| inputs / 32 * 19).unwrap_err();
        assert!(refused.contains("has the shape"), "{refused}");
    }

    #[test]
    fn attack_a02_a_tally_names_what_is_missing_without_listing_what_is_wished() {
        let config = include_str!("../../../domain/testdata/tiny.json");
        let mut architecture = Architecture::from_config_json(config.as_bytes()).unwrap();
        architecture.num_hidden_layers = u64::MAX / 2;
        let missing = FoundTensors::new(&architecture).finish().unwrap_err();
        assert!(missing.starts_with("The tensor 'lm_head.weight' is missing, and "), "{missing}");
    }
}
