//! One `.safetensors` file. Its whole header is checked on opening; its tensors are read one at a time, so that a model
//! larger than the free memory can be quantized while it is loaded.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use safetensors::{Dtype, View, serialize_to_file, tensor::Metadata};
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::{bytes, bytes_mut, bytes_of, numbers},
        fused::{run, share},
        pick::{Kernel, Number, pick},
    },
};

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

    /// Reads a tensor in the kind it is stored in, straight into its memory.
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
        let (start, _) = info.data_offsets;
        let mut tensor = Tensor::f_empty(&shape, (kind, Device::Cpu))?;
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(ModelError::io(&self.path))?;
        file.read_exact(bytes_mut(&mut tensor)?).map_err(ModelError::io(&self.path))?;
        Ok(tensor)
    }

    /// Returns whether a tensor is stored in bytes without a sign.
    pub(crate) fn is_bytes(&self, name: &str) -> bool {
        self.header.info(name).is_some_and(|info| info.dtype == Dtype::U8)
    }

    /// Reads the bytes of a tensor.
    ///
    /// # Errors
    /// Those of [`TensorFile::read`].
    pub(crate) fn read_bytes(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let missing = || ModelError::Missing { name: name.into(), place: self.path.clone() };
        let (start, end) = self.header.info(name).ok_or_else(missing)?.data_offsets;
        let mut content = vec![0; end - start];
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(ModelError::io(&self.path))?;
        file.read_exact(&mut content).map_err(ModelError::io(&self.path))?;
        Ok(content)
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

/// Returns whether every number of a tensor is finite. On a CPU it copies nothing: the tensor may be a whole embedding.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, ModelError> {
    if pick(tensor, &[])? != Kernel::Cpu(Number::F32) {
        return Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0);
    }
    let numbers = numbers::<f32>(tensor)?;
    let all = AtomicBool::new(true);
    run(
        numbers.chunks(share(numbers.len(), 1)),
        #[inline(always)]
        |piece| {
            // No early exit, so that the loop is vectorized.
            all.fetch_and(piece.iter().fold(true, |all, number| all & number.is_finite()), Relaxed);
        },
    );
    Ok(all.load(Relaxed))
}

/// A tensor to write to a file. Its memory is borrowed, so that a file as large as the model is written without a copy.
pub(crate) struct Stored<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data<'a>,
}

enum Data<'a> {
    Tensor(Tensor),
    Slice(&'a [u8]),
}

impl<'a> Stored<'a> {
    /// Returns a tensor of any kind that can be stored. One that is not contiguous, or not on the CPU, is copied.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self, ModelError> {
        let tensor = tensor.f_detach()?.f_contiguous()?.f_to_device(Device::Cpu)?;
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| ModelError::Input(format!("{kind:?} cannot be stored")))?;
        // Checked here, since `View::data` returns no error.
        bytes(&tensor)?;
        let shape = tensor.size().iter().map(|&side| usize::try_from(side).unwrap_or(0)).collect();
        Ok(Self { dtype, shape, data: Data::Tensor(tensor) })
    }

    /// Returns numbers as a tensor of one dimension.
    pub(crate) fn floats(numbers: &'a [f32]) -> Self {
        Self { dtype: Dtype::F32, shape: vec![numbers.len()], data: Data::Slice(bytes_of(numbers)) }
    }

    /// Returns codes as a `Uint8` tensor of one dimension.
    pub(crate) fn codes(codes: &'a [u8]) -> Self {
        Self { dtype: Dtype::U8, shape: vec![codes.len()], data: Data::Slice(codes) }
    }

    /// Returns the shape.
    pub(crate) fn size(&self) -> Vec<i64> {
        self.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect()
    }

    /// Returns whether the numbers are codes and not floats.
    pub(crate) fn is_codes(&self) -> bool {
        self.dtype == Dtype::U8
    }

    fn slice(&self) -> &[u8] {
        match &self.data {
            Data::Tensor(tensor) => bytes(tensor).unwrap_or_default(),
            Data::Slice(slice) => slice,
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.slice().into()
    }

    fn data_len(&self) -> usize {
        self.slice().len()
    }
}

/// Writes tensors and `metadata` as a `.safetensors` file: to a temporary file in the same folder, renamed when
/// complete.
///
/// # Errors
/// [`ModelError::File`]: it cannot be written; [`ModelError::Input`]: a kind that cannot be stored;
/// [`ModelError::Torch`]: a tensor cannot be copied out.
pub fn write_tensors(
    path: &Path,
    tensors: &[(String, &Tensor)],
    metadata: HashMap<String, String>,
) -> Result<(), ModelError> {
    let stored = tensors.iter().map(|(name, tensor)| Ok((name.clone(), Stored::of(tensor)?)));
    write_stored(path, stored.collect::<Result<_, ModelError>>()?, metadata)
}

/// Writes as [`write_tensors`], from borrowed memory.
pub(crate) fn write_stored(
    path: &Path,
    tensors: Vec<(String, Stored<'_>)>,
    metadata: HashMap<String, String>,
) -> Result<(), ModelError> {
    serialize_to_file(tensors, Some(metadata), path).map_err(|e| ModelError::file(path, e.to_string()))
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

pub(crate) fn dtype_of(kind: Kind) -> Option<Dtype> {
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

    #[test]
    fn an_infinite_number_is_found_wherever_it_is() {
        let mut numbers = vec![f32::MAX; 100_000];
        assert!(is_finite(&Tensor::from_slice(&numbers)).unwrap(), "their sum is infinite in f32");
        assert!(is_finite(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap());
        for (at, bad) in [(0, f32::NAN), (77_777, f32::INFINITY), (99_999, f32::NEG_INFINITY)] {
            let good = std::mem::replace(&mut numbers[at], bad);
            let tensor = Tensor::from_slice(&numbers);
            assert!(!is_finite(&tensor).unwrap() && !is_finite(&tensor.to_kind(Kind::Double)).unwrap(), "{at}");
            numbers[at] = good;
        }
    }

    #[test]
    fn a_tensor_with_gaps_is_stored_without_them() {
        let whole = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6]).view((2, 3));
        let (folder, cut) = (tempfile::tempdir().unwrap(), whole.narrow(1, 1, 2));
        let path = folder.path().join("x.safetensors");
        write_tensors(&path, &[("w".to_owned(), &cut)], HashMap::new()).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().read("w").unwrap(), cut);
    }
}
