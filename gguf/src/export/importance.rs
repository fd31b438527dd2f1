//! The importance of the columns of matrices: the mean square of the input that each column is multiplied with. A
//! quantization that weights errors with it keeps those columns more exact that change the output most.
//!
//! Source: llama.cpp's `tools/imatrix`, and its pull request 4861, "Importance Matrix calculation".

use std::collections::BTreeMap;

/// An importance matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    /// The mean squares of the inputs of each matrix, a number per column, by the matrix' Hugging Face name.
    pub columns: BTreeMap<String, Vec<f32>>,
    /// The name of the text that the inputs were computed from.
    pub dataset: String,
    /// The number of chunks that the text was read in.
    pub chunks: u32,
}
