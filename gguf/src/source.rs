//! A GGUF file: its metadata and tensors by name. candle-core parses the format; this module adds names to errors,
//! checks the length of the file against its tensors before any conversion, and reads rows in parts.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::ImportError;

/// An open GGUF file.
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    content: Content,
}

/// The location of one tensor in the file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) kind: GgmlDType,
    /// The dimensions, rows first, in Hugging Face's order.
    pub(crate) shape: Vec<u64>,
    start: u64,
}

/// The type numbers and names of unsupported ggml types. Source: `enum ggml_type` in ggml's `ggml.h`.
const UNREAD: [(u32, &str); 13] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Source {
    /// Opens a file and checks that it contains all its tensors.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let file = File::open(path).map_err(ImportError::read(path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file.try_clone().map_err(ImportError::read(path))?);
        let mut magic = [0; 4];
        match reader.read_exact(&mut magic) {
            Ok(()) if &magic == b"GGUF" => {}
            Ok(()) => return Err(ImportError::NotGguf(other_format(magic).into())),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ImportError::NotGguf("it is too short".into()));
            }
            Err(e) => return Err(ImportError::read(path)(e)),
        }
        reader.rewind().map_err(ImportError::read(path))?;
        // candle-core divides by `general.alignment` unchecked, so a hostile header can make it panic.
        let content = catch_unwind(AssertUnwindSafe(|| Content::read(&mut reader)))
            .map_err(|_| ImportError::NotGguf("its header is not valid".into()))?
            .map_err(|e| header_error(&e))?;
        let source = Self { path: path.to_owned(), file, content };
        source.check_length()?;
        Ok(source)
    }

    /// Returns all tensors, in file order.
    pub(crate) fn tensors(&self) -> Vec<Stored> {
        let mut all: Vec<_> = self.content.tensor_infos.keys().filter_map(|name| self.tensor(name)).collect();
        all.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
        all
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<Stored> {
        let info = self.content.tensor_infos.get(name)?;
        Some(Stored {
            name: name.to_owned(),
            kind: info.ggml_dtype,
            shape: info.shape.dims().iter().map(|d| *d as u64).collect(),
            start: self.content.tensor_data_offset.saturating_add(info.offset),
        })
    }

    fn check_length(&self) -> Result<(), ImportError> {
        let length = self.file.metadata().map_err(ImportError::read(&self.path))?.len();
        for tensor in self.tensors() {
            let bytes = tensor.bytes().ok_or_else(|| {
                ImportError::NotGguf(format!("tensor '{}' has the impossible shape {:?}", tensor.name, tensor.shape))
            })?;
            let end = tensor.start.saturating_add(bytes);
            if end > length {
                return Err(ImportError::Truncated { tensor: tensor.name, end, length });
            }
        }
        Ok(())
    }

    /// Returns the raw bytes of rows `rows` of a tensor.
    pub(crate) fn raw_rows(&mut self, tensor: &Stored, rows: std::ops::Range<u64>) -> Result<Vec<u8>, ImportError> {
        let row = tensor.row_bytes();
        let length = usize::try_from((rows.end - rows.start) * row).unwrap_or(usize::MAX);
        let mut raw = vec![0; length];
        self.file
            .seek(SeekFrom::Start(tensor.start + rows.start * row))
            .and_then(|_| self.file.read_exact(&mut raw))
            .map_err(ImportError::read(&self.path))?;
        Ok(raw)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.content.metadata.get(key)?.to_bool().ok()
    }

    /// Returns an integer; an array of equal numbers (one per layer) counts as that number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.content.metadata.get(key)? {
            Value::Array(list) => {
                let mut numbers = list.iter().map(whole);
                let first = numbers.next()??;
                numbers.all(|other| other == Some(first)).then_some(first)
            }
            value => whole(value),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        real(self.content.metadata.get(key)?)
    }

    /// Returns an integer like [`Self::number`]; a value of another type is an error instead of `None`.
    pub(crate) fn whole(&self, key: &str) -> Result<Option<u64>, ImportError> {
        self.typed(key, Self::number, "a whole number")
    }

    /// Returns an integer or a float; a value of another type is an error.
    pub(crate) fn real(&self, key: &str) -> Result<Option<f64>, ImportError> {
        self.typed(key, |source, key| source.float(key).or_else(|| source.number(key).map(|n| n as f64)), "a number")
    }

    /// Returns a string; a value of another type is an error.
    pub(crate) fn word(&self, key: &str) -> Result<Option<&str>, ImportError> {
        self.typed(key, Self::text, "a string")
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        read: impl Fn(&'a Self, &str) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, ImportError> {
        match read(self, key) {
            None if self.content.metadata.contains_key(key) => {
                Err(ImportError::Unsupported(format!("metadata '{key}' is not {kind}")))
            }
            value => Ok(value),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        list.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
    }

    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        self.content.metadata.get(key)?.to_vec().ok()?.iter().map(whole).collect()
    }

    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f64>> {
        self.content.metadata.get(key)?.to_vec().ok()?.iter().map(real).collect()
    }
}

impl Stored {
    /// Returns the number of rows. An unquantized vector is a column, so that it can be permuted like a matrix.
    pub(crate) fn rows(&self) -> u64 {
        match self.shape.as_slice() {
            [] => 1,
            [_] if self.kind.block_size() > 1 => 1,
            [rows, ..] => *rows,
        }
    }

    fn columns(&self) -> u64 {
        match self.shape.as_slice() {
            [] => 1,
            [length] if self.kind.block_size() > 1 => *length,
            [_, rest @ ..] => rest.iter().product(),
        }
    }

    /// Returns the number of elements in one row.
    pub(crate) fn row_elements(&self) -> u64 {
        self.columns()
    }

    /// Returns the number of bytes of one row.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.columns() / self.kind.block_size() as u64 * self.kind.type_size() as u64
    }

    /// Returns the tensor's size in bytes; `None` if its shape overflows or is not a multiple of whole blocks.
    fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1_u64, |all, dim| all.checked_mul(*dim))?;
        let block = self.kind.block_size() as u64;
        let whole_rows = elements == 0 || self.columns().is_multiple_of(block);
        whole_rows.then_some(())?;
        (elements / block).checked_mul(self.kind.type_size() as u64)
    }
}

/// Dequantizes raw blocks.
pub(crate) fn dequantise(kind: GgmlDType, raw: &[u8], elements: usize) -> Result<Vec<f32>, ImportError> {
    let broken = |e: candle_core::Error| ImportError::NotGguf(e.to_string());
    let blocks = qtensor_from_ggml(kind, raw, vec![elements], &Device::Cpu).map_err(broken)?;
    blocks.dequantize(&Device::Cpu).and_then(|tensor| tensor.to_vec1()).map_err(broken)
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::I8(v) => u64::try_from(*v).ok(),
        Value::I16(v) => u64::try_from(*v).ok(),
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::I64(v) => u64::try_from(*v).ok(),
        Value::Bool(_) => None,
        other => other.to_u64().ok(),
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        Value::F32(v) => Some(f64::from(*v)),
        Value::F64(v) => Some(*v),
        _ => None,
    }
}

fn other_format(magic: [u8; 4]) -> &'static str {
    match &magic {
        b"FUGG" => "it is a big-endian GGUF, which is not supported",
        b"PK\x03\x04" => "it is a zip or PyTorch file; import a GGUF file or a Hugging Face folder with safetensors",
        b"lmgg" | b"tjgg" | b"fmgg" => "it has llama.cpp's older format; convert it to GGUF first",
        _ => "it does not begin with 'GGUF'",
    }
}

fn header_error(error: &candle_core::Error) -> ImportError {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    if let Some(number) = first.strip_prefix("unknown dtype for tensor ") {
        let known = UNREAD.iter().find(|(code, _)| number.trim() == code.to_string());
        return ImportError::Quantisation(known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).into()));
    }
    if first.contains("failed to fill whole buffer") || first.contains(" remaining") {
        return ImportError::NotGguf("it is truncated inside its header".into());
    }
    ImportError::NotGguf(first.trim_start_matches("gguf: ").to_owned())
}
