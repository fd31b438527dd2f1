//! One `.safetensors` file. Its whole header is checked on opening; its tensors are read one at a time, so that a model
//! larger than the free memory can be quantized while it is loaded.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Mutex,
};

use safetensors::{
    Dtype, serialize_to_file,
    tensor::{Metadata, TensorView},
};
use tch::{Kind, Tensor};

use crate::error::ModelError;

/// The maximum header length in bytes; the safetensors library has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// An opened `.safetensors` file.
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens a file, and checks that its header is valid and that its data is complete.
    ///
    /// # Errors
    /// [`ModelError::Io`]: it cannot be read. [`ModelError::File`]: it is truncated, or not a safetensors file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(ModelError::file(path, format!("not a safetensors file: only {length} bytes")));
        }
        file.read_exact(&mut prefix).map_err(ModelError::io(path))?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER {
            return Err(ModelError::file(path, "not a safetensors file: its first 8 bytes are no header length"));
        }
        if 8 + header_length > length {
            return Err(ModelError::file(
                path,
                format!("truncated: {length} bytes, and the header alone needs {}", 8 + header_length),
            ));
        }
        let mut text = vec![0; usize::try_from(header_length).unwrap_or(0)];
        file.read_exact(&mut text).map_err(ModelError::io(path))?;
        // Parsing also checks that the tensors are contiguous and that each has the bytes that its shape needs.
        let header: Metadata = serde_json::from_slice(&text)
            .map_err(|e| ModelError::file(path, format!("not a safetensors file: {e}")))?;
        let wanted = 8 + header_length + header.data_len() as u64;
        if wanted > length {
            return Err(ModelError::file(path, format!("truncated: {length} bytes, and the header says {wanted}")));
        }
        if wanted < length {
            return Err(ModelError::file(path, format!("{} bytes too many at its end", length - wanted)));
        }
        Ok(Self { path: path.into(), file: Mutex::new(file), header, data_start: 8 + header_length })
    }

    /// Returns the file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of the tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// Returns the metadata of the header (`__metadata__`).
    #[must_use]
    pub fn metadata(&self) -> HashMap<String, String> {
        self.header.metadata().clone().unwrap_or_default()
    }

    /// Returns the shape of a tensor, if it exists.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        Some(self.header.info(name)?.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect())
    }

    /// Reads a tensor in the kind it is stored in.
    ///
    /// # Errors
    /// [`ModelError::Missing`]; [`ModelError::File`]: a data type that libtorch does not have; [`ModelError::Io`];
    /// [`ModelError::Torch`].
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::Missing { name: name.into(), place: self.path.clone() };
        let info = self.header.info(name).ok_or_else(missing)?;
        let shape = self.shape(name).ok_or_else(missing)?;
        let kind = kind_of(info.dtype)
            .ok_or_else(|| ModelError::file(&self.path, format!("tensor '{name}' is stored as {}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        {
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(ModelError::io(&self.path))?;
            file.read_exact(&mut bytes).map_err(ModelError::io(&self.path))?;
        }
        Ok(Tensor::f_from_data_size(&bytes, &shape, kind)?)
    }

    /// Reads a tensor of floats as `Float`, and checks that every number is finite.
    ///
    /// # Errors
    /// Those of [`TensorFile::read`]; [`ModelError::NotFinite`]; [`ModelError::File`] if it does not hold floats.
    pub fn read_floats(&self, name: &str) -> Result<Tensor, ModelError> {
        let tensor = self.read(name)?;
        if !matches!(tensor.f_kind()?, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double) {
            return Err(ModelError::file(&self.path, format!("tensor '{name}' does not hold floats")));
        }
        let tensor = tensor.f_to_kind(Kind::Float)?;
        if is_finite(&tensor)? { Ok(tensor) } else { Err(ModelError::NotFinite(name.into())) }
    }
}

/// Returns whether every number of a tensor is finite. One pass in the common case: an infinity or NaN makes the sum
/// infinite or NaN.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, ModelError> {
    if tensor.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
        return Ok(true);
    }
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// Writes tensors and `metadata` as a `.safetensors` file: to a temporary file in the same folder, renamed when
/// complete.
///
/// # Errors
/// [`ModelError::File`]: it cannot be written; [`ModelError::Torch`]: a tensor cannot be copied out.
pub fn write_tensors(
    path: &Path,
    tensors: &[(String, &Tensor)],
    metadata: HashMap<String, String>,
) -> Result<(), ModelError> {
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.f_detach()?.f_contiguous()?.f_to_device(tch::Device::Cpu)?;
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| ModelError::file(path, format!("{kind:?} cannot be stored")))?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|&side| usize::try_from(side).unwrap_or(0)).collect();
        parts.push((name, dtype, shape, bytes));
    }
    let mut views = Vec::with_capacity(parts.len());
    for (name, dtype, shape, bytes) in &parts {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| ModelError::file(path, e.to_string()))?;
        views.push((name.as_str(), view));
    }
    serialize_to_file(views, Some(metadata), path).map_err(|e| ModelError::file(path, e.to_string()))
}

const KINDS: [(Dtype, Kind); 9] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::U8, Kind::Uint8),
    (Dtype::I8, Kind::Int8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(d, _)| *d == dtype).map(|(_, kind)| *kind)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(_, k)| *k == kind).map(|(dtype, _)| *dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("x.safetensors");
        let a = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).view((2, 3));
        let b = Tensor::from_slice(&[1u8, 2]);
        let tensors = [("a.weight".to_owned(), &a), ("b".to_owned(), &b)];
        write_tensors(&path, &tensors, HashMap::from([("format".into(), "pt".into())])).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = TensorFile::open(&written(folder.path())).unwrap();
        assert_eq!(file.names(), ["a.weight", "b"]);
        assert_eq!(file.shape("a.weight").unwrap(), [2, 3]);
        assert_eq!(file.metadata()["format"], "pt");
        assert_eq!(file.read("a.weight").unwrap().double_value(&[1, 2]), 6.0);
        assert_eq!(file.read("b").unwrap().kind(), Kind::Uint8);
        assert!(matches!(file.read("c"), Err(ModelError::Missing { .. })));
        assert!(file.read_floats("b").is_err());
    }

    #[test]
    fn a_truncated_file_is_refused_wherever_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(TensorFile::open(&path), Err(ModelError::File { .. })), "cut at {cut}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(TensorFile::open(&path), Err(ModelError::File { .. })));
        std::fs::write(&path, b"GGUF and some more bytes").unwrap();
        assert!(TensorFile::open(&path).err().unwrap().to_string().contains("not a safetensors file"));
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let bad = Tensor::from_slice(&[1f32, f32::NAN]);
        write_tensors(&path, &[("w".to_owned(), &bad)], HashMap::new()).unwrap();
        let refused = TensorFile::open(&path).unwrap().read_floats("w").unwrap_err();
        assert_eq!(refused.to_string(), "tensor 'w' has NaN or infinite values");
    }
}
