//! A GGUF file's header: its metadata and the places of its tensors.
//!
//! Source: ggml's `docs/gguf.md`, version 3 of the format.

use crate::export::tensors::{ALIGNMENT, Planned};

/// The version of the format.
const VERSION: u32 = 3;

// The numbers of value types: `gguf_metadata_value_type`.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The metadata, encoded.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    bytes: Vec<u8>,
    count: u64,
}

impl Metadata {
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.pair(key, STRING, &text(value));
    }

    pub(crate) fn number(&mut self, key: &str, value: u32) {
        self.pair(key, U32, &value.to_le_bytes());
    }

    pub(crate) fn real(&mut self, key: &str, value: f32) {
        self.pair(key, F32, &value.to_le_bytes());
    }

    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.pair(key, BOOL, &[u8::from(value)]);
    }

    pub(crate) fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.array(key, STRING, values.map(text));
    }

    pub(crate) fn numbers(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        self.array(key, I32, values.map(|value| value.to_le_bytes()));
    }

    pub(crate) fn reals(&mut self, key: &str, values: impl ExactSizeIterator<Item = f32>) {
        self.array(key, F32, values.map(|value| value.to_le_bytes()));
    }

    fn array<B: AsRef<[u8]>>(&mut self, key: &str, kind: u32, values: impl ExactSizeIterator<Item = B>) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend(value.as_ref());
        }
        self.pair(key, ARRAY, &bytes);
    }

    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.bytes.extend(text(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.count += 1;
    }

    /// Returns everything in front of the tensors' data, padded to its alignment.
    pub(crate) fn file_header(&self, tensors: &[Planned]) -> Vec<u8> {
        let mut header = b"GGUF".to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend(self.count.to_le_bytes());
        header.extend(&self.bytes);
        let mut offset = 0_u64;
        for tensor in tensors {
            header.extend(text(&tensor.gguf));
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            // The shortest stride first.
            for dimension in tensor.shape.iter().rev() {
                header.extend(dimension.to_le_bytes());
            }
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.bytes() + tensor.padding() as u64;
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        header
    }
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}
