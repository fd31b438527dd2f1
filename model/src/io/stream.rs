//! A `.safetensors` file that is written tensor by tensor, so that memory does not grow with the file.
//!
//! Source of the format: the README of the safetensors crate.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{
    error::ModelError,
    io::tensor_file::{dtype_of, is_finite},
};

/// A tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<i64>,
}

impl Entry {
    /// Returns the length of the tensor's data in this kind.
    #[must_use]
    pub fn bytes(&self, kind: Kind) -> u64 {
        let elements: u64 = self.shape.iter().map(|side| u64::try_from(*side).unwrap_or(0)).product();
        elements.saturating_mul(kind.elt_size_in_bytes() as u64)
    }
}

/// Writes these tensors in `kind`; `read` returns each of them when it is needed. A partial file is removed.
///
/// # Errors
/// [`ModelError::NotFinite`]: a tensor has numbers that `kind` cannot hold. [`ModelError::Io`], and those of `read`.
pub fn write_streamed<E: From<ModelError>>(
    path: &Path,
    kind: Kind,
    entries: &[Entry],
    read: impl FnMut(&Entry) -> Result<Tensor, E>,
) -> Result<(), E> {
    let written = write_all(path, kind, entries, read);
    if written.is_err() {
        // The file may not exist; the first error is the one to report.
        let _ = fs::remove_file(path);
    }
    written
}

fn write_all<E: From<ModelError>>(
    path: &Path,
    kind: Kind,
    entries: &[Entry],
    mut read: impl FnMut(&Entry) -> Result<Tensor, E>,
) -> Result<(), E> {
    let file = File::create(path).map_err(ModelError::io(path))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&header(path, kind, entries)?).map_err(ModelError::io(path))?;
    for entry in entries {
        let bytes = encoded(&read(entry)?, kind, entry)?;
        file.write_all(&bytes).map_err(ModelError::io(path))?;
    }
    let file = file.into_inner().map_err(|error| ModelError::io(path)(error.into_error()))?;
    Ok(file.sync_all().map_err(ModelError::io(path))?)
}

fn encoded(tensor: &Tensor, kind: Kind, entry: &Entry) -> Result<Vec<u8>, ModelError> {
    if tensor.size() != entry.shape {
        return Err(ModelError::Shape { name: entry.name.clone(), want: entry.shape.clone(), got: tensor.size() });
    }
    let tensor = tensor.f_to_kind(kind)?.f_contiguous()?;
    if !is_finite(&tensor)? {
        return Err(ModelError::NotFinite(entry.name.clone()));
    }
    let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn header(path: &Path, kind: Kind, entries: &[Entry]) -> Result<Vec<u8>, ModelError> {
    let dtype = dtype_of(kind).ok_or_else(|| ModelError::file(path, format!("{kind:?} cannot be stored")))?;
    let dtype = serde_json::to_value(dtype).map_err(|why| ModelError::file(path, why.to_string()))?;
    let mut all = Map::new();
    all.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for entry in entries {
        let end = at + entry.bytes(kind);
        let place = json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [at, end]});
        all.insert(entry.name.clone(), place);
        at = end;
    }
    let mut text = Value::Object(all).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensor_file::TensorFile;

    fn entries() -> [Entry; 2] {
        let entry = |name: &str, shape: &[i64]| Entry { name: name.into(), shape: shape.to_vec() };
        [entry("a.weight", &[2, 3]), entry("b", &[3])]
    }

    fn tensor(entry: &Entry) -> Tensor {
        let count: i64 = entry.shape.iter().product();
        (Tensor::arange(count, (Kind::Float, tch::Device::Cpu)) + 0.5).view(entry.shape.as_slice())
    }

    #[test]
    fn a_streamed_file_is_read_as_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            write_streamed(&path, kind, &entries(), |entry| Ok::<_, ModelError>(tensor(entry))).unwrap();
            let file = TensorFile::open(&path).unwrap();
            assert_eq!(file.names(), ["a.weight", "b"]);
            assert_eq!(file.metadata()["format"], "pt");
            assert_eq!(file.read("a.weight").unwrap().kind(), kind);
            assert_eq!(file.read_floats("a.weight").unwrap(), tensor(&entries()[0]));
        }
    }

    #[test]
    fn a_number_that_the_kind_cannot_hold_is_refused_and_no_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let large = |entry: &Entry| Ok::<_, ModelError>(tensor(entry) * 1e5);
        let refused = write_streamed(&path, Kind::Half, &entries(), large).unwrap_err();
        assert!(matches!(refused, ModelError::NotFinite(name) if name == "a.weight"));
        assert!(!path.exists());
    }
}
