//! The safetensors writer: tensor by tensor and in parts, so that memory does not grow with the model.
//!
//! F32, F16 and BF16 are copied, byte for byte, and so are blocks that are kept; other quantized weights become F32.
//! llama.cpp permutes the rows of q and k of Llama models for its own rotary embedding; that is reversed here, by whole
//! rows, so the blocks of a row stay the same. Source: the safetensors format's README; `LlamaTensorProcessor` in
//! transformers' `modeling_gguf_pytorch_utils.py`.

use std::io::Write;
use std::ops::Range;

use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::source::{Source, Stored, dequantise};

/// The number of elements processed at once: 8 MiB of F32.
const PART: u64 = 2 << 20;

/// One tensor to convert.
pub(crate) struct Planned {
    /// The tensor's Hugging Face name.
    pub(crate) name: String,
    /// The tensor's location in the GGUF file.
    pub(crate) stored: Stored,
    /// The width of a head, if the permutation of its rows must be reversed.
    pub(crate) permuted: Option<u64>,
    /// `true`: the tensor's blocks are copied, as bytes.
    pub(crate) is_kept: bool,
}

impl Planned {
    /// Returns the output's data type: its safetensors name and width in bytes.
    pub(crate) fn written(&self) -> (&'static str, u64) {
        match self.stored.kind {
            _ if self.is_kept => ("U8", 1),
            GgmlDType::F16 => ("F16", 2),
            GgmlDType::BF16 => ("BF16", 2),
            _ => ("F32", 4),
        }
    }

    /// Returns the output's shape.
    fn shape(&self) -> Vec<u64> {
        if self.is_kept { vec![self.stored.rows(), self.stored.row_bytes()] } else { self.stored.shape.clone() }
    }

    fn bytes(&self) -> u64 {
        self.shape().iter().product::<u64>() * self.written().1
    }

    fn is_copied(&self) -> bool {
        self.is_kept || matches!(self.stored.kind, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
    }

    /// Returns the ranges of rows to read together: whole heads, if rows are reordered inside a head.
    fn parts(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let unit = self.permuted.unwrap_or(1);
        let rows = self.stored.rows();
        let step = (PART / self.stored.row_elements().max(1) / unit).max(1) * unit;
        (0..rows).step_by(usize::try_from(step).unwrap_or(usize::MAX)).map(move |at| at..(at + step).min(rows))
    }
}

/// Sorts tensors as safetensors does: wider data types first, so that each is aligned, then by name.
pub(crate) fn sort(tensors: &mut [Planned]) {
    tensors.sort_by(|a, b| (b.written().1, &a.name).cmp(&(a.written().1, &b.name)));
}

/// Returns the total number of bytes of all tensors, without the header.
pub(crate) fn total_bytes(tensors: &[Planned]) -> u64 {
    tensors.iter().map(Planned::bytes).sum()
}

/// Writes the complete file. `progress` receives the number of tensor bytes written.
pub(crate) fn write(
    source: &mut Source,
    tensors: &[Planned],
    out: &mut impl Write,
    failed: impl Fn(std::io::Error) -> ImportError,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    out.write_all(&header(tensors)).map_err(&failed)?;
    let mut done = 0;
    for tensor in tensors {
        for rows in tensor.parts() {
            let raw = source.raw_rows(&tensor.stored, rows.clone())?;
            let mut bytes = if tensor.is_copied() {
                raw
            } else {
                let elements = (rows.end - rows.start) * tensor.stored.row_elements();
                let numbers = dequantise(tensor.stored.kind, &raw, usize::try_from(elements).unwrap_or(usize::MAX))?;
                numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
            };
            if let Some(head) = tensor.permuted {
                let row = bytes.len() / usize::try_from(rows.end - rows.start).unwrap_or(1).max(1);
                bytes = rows_in_order(&bytes, row, usize::try_from(head).unwrap_or(1));
            }
            out.write_all(&bytes).map_err(&failed)?;
            done += bytes.len() as u64;
            progress(done);
        }
    }
    Ok(())
}

fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut entries = Map::new();
    // transformers opens only files of the format `pt`: others would take blocks for numbers.
    let format = if tensors.iter().any(|tensor| tensor.is_kept) { "gguf-blocks" } else { "pt" };
    entries.insert("__metadata__".into(), json!({"format": format}));
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let entry = json!({"dtype": tensor.written().0, "shape": tensor.shape(), "data_offsets": [at, end]});
        entries.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut all = (text.len() as u64).to_le_bytes().to_vec();
    all.extend(text);
    all
}

/// Reverses llama.cpp's permutation: within each head, its row `2i + j` is Hugging Face's row `j · head / 2 + i`, for
/// `j` of 0 and 1.
fn rows_in_order(bytes: &[u8], row: usize, head: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for block in bytes.chunks_exact(row * head) {
        for j in 0..2 {
            for i in 0..head / 2 {
                let from = (2 * i + j) * row;
                out.extend_from_slice(&block[from..from + row]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_put_back() {
        // Two heads of four rows, one byte each. llama.cpp stores 0 1 2 3 as 0 2 1 3.
        assert_eq!(rows_in_order(&[0, 2, 1, 3, 10, 12, 11, 13], 1, 4), [0, 1, 2, 3, 10, 11, 12, 13]);
        assert_eq!(rows_in_order(&[0, 0, 2, 2, 1, 1, 3, 3], 2, 4), [0, 0, 1, 1, 2, 2, 3, 3]);
    }
}
