//! The tensors of an export: read from the caller, permuted as llama.cpp does it, and encoded.
//!
//! Source: `permute` of `LlamaModel` in llama.cpp's `convert_hf_to_gguf.py`.

use crate::export::error::ExportError;
use crate::export::importance::Importance;
use crate::export::interface::Weights;
use crate::export::kind::Kind;
use crate::export::quants::encode::{Encoding, encode};

/// The alignment of each tensor's data: the format's default.
pub(crate) const ALIGNMENT: usize = 32;

/// The settings of the encoding of all tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub(crate) importance: Option<&'a Importance>,
    /// The number of threads.
    pub(crate) threads: usize,
}

/// A tensor to write.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The tensor's name in the file.
    pub(crate) gguf: String,
    /// The dimensions, rows first.
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: Kind,
    pub(crate) values: Values,
}

/// The numbers of a tensor.
#[derive(Debug)]
pub(crate) enum Values {
    /// The numbers of the caller's tensor of this name, with the rows of each head of this width permuted.
    Read { name: String, head: Option<u64> },
    /// Numbers that the export computes.
    Given(Vec<f32>),
}

impl Planned {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Returns the length of the encoded tensor.
    pub(crate) fn bytes(&self) -> u64 {
        self.kind.bytes_of(self.elements())
    }

    /// Returns the number of bytes between the tensor and the next one.
    pub(crate) fn padding(&self) -> usize {
        let alignment = ALIGNMENT as u64;
        usize::try_from(self.bytes().next_multiple_of(alignment) - self.bytes()).unwrap_or(0)
    }

    /// Returns the length of a row; a vector is one row.
    fn columns(&self) -> usize {
        usize::try_from(self.shape.last().copied().unwrap_or(1)).unwrap_or(1)
    }

    /// Returns the encoded tensor.
    pub(crate) fn encoded<W: Weights>(&self, weights: &mut W, settings: Settings<'_>) -> Result<Vec<u8>, ExportError> {
        match &self.values {
            Values::Given(numbers) => self.bytes_of(numbers, (&self.gguf, None), settings.threads),
            Values::Read { name, head } => {
                let mut numbers = weights.read(name).map_err(|why| ExportError::Weights(Box::new(why)))?;
                if numbers.len() as u64 != self.elements() {
                    let (found, wanted) = (numbers.len(), self.elements());
                    let why = format!("tensor '{name}' has {found} numbers, and {wanted} are needed");
                    return Err(ExportError::Unsupported(why));
                }
                if let Some(head) = head {
                    let rows = self.shape.first().copied().unwrap_or(1).max(1);
                    let columns = usize::try_from(self.elements() / rows).unwrap_or(1);
                    numbers = permuted(&numbers, columns, usize::try_from(*head).unwrap_or(1));
                }
                let importance = settings.importance.and_then(|all| all.columns.get(name)).map(Vec::as_slice);
                self.bytes_of(&numbers, (name, importance), settings.threads)
            }
        }
    }

    fn bytes_of(
        &self,
        numbers: &[f32],
        (name, importance): (&str, Option<&[f32]>),
        threads: usize,
    ) -> Result<Vec<u8>, ExportError> {
        let columns = self.columns();
        if let Some(known) = importance.map(<[f32]>::len).filter(|known| *known != columns) {
            let why = format!("tensor '{name}' has {columns} columns, and the importance of {known} is known");
            return Err(ExportError::Unsupported(why));
        }
        encode(numbers, Encoding { kind: self.kind, columns, importance, threads }).ok_or_else(|| {
            ExportError::Unsupported(format!("tensor '{name}' has numbers that 16-bit floats cannot hold"))
        })
    }
}

/// Returns the rows in llama.cpp's order: within each head, its row `2i + j` is Hugging Face's row `j · head / 2 + i`,
/// for `j` of 0 and 1.
fn permuted(numbers: &[f32], columns: usize, head: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(numbers.len());
    for block in numbers.chunks_exact(columns * head) {
        for i in 0..head / 2 {
            for j in 0..2 {
                let from = (j * head / 2 + i) * columns;
                out.extend_from_slice(&block[from..from + columns]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_permuted_as_llama_cpp_does_it() {
        let rows = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        assert_eq!(permuted(&rows, 1, 4), [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]);
        assert_eq!(permuted(&rows, 2, 4), [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
    }

    #[test]
    fn a_number_that_16_bits_cannot_hold_is_refused_by_its_tensors_name() {
        let values = || Values::Given(vec![1e6]);
        let tensor = |kind| Planned { gguf: "output_norm.weight".into(), shape: vec![1], kind, values: values() };
        let encoded = |kind: Kind| tensor(kind).encoded(&mut NoWeights, Settings { importance: None, threads: 1 });
        let refused = encoded(Kind::F16).unwrap_err().to_string();
        assert!(refused.contains("output_norm.weight"), "{refused}");
        assert_eq!(encoded(Kind::F32).unwrap(), 1e6_f32.to_le_bytes());
    }

    #[test]
    fn the_importance_of_other_columns_is_refused() {
        let values = Values::Read { name: "w".into(), head: None };
        let tensor = Planned { gguf: "w".into(), shape: vec![1, 32], kind: Kind::Q5Zero, values };
        let of = |columns: usize| Importance {
            columns: [("w".to_owned(), vec![1.0; columns])].into(),
            dataset: "rows".into(),
            chunks: 1,
        };
        let encoded = |all: &Importance| tensor.encoded(&mut NoWeights, Settings { importance: Some(all), threads: 1 });
        assert_eq!(encoded(&of(32)).unwrap().len(), 22);
        let refused = encoded(&of(31)).unwrap_err().to_string();
        assert!(refused.contains("32 columns, and the importance of 31"), "{refused}");
    }

    /// A caller whose tensors have 32 zeros.
    struct NoWeights;

    impl Weights for NoWeights {
        type Error = std::convert::Infallible;

        fn read(&mut self, _name: &str) -> Result<Vec<f32>, Self::Error> {
            Ok(vec![0.0; 32])
        }

        fn written(&mut self, _written: crate::export::interface::Written) -> Result<(), Self::Error> {
            Ok(())
        }
    }
}
