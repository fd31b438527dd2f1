//! The caller's side of an export: the model or the adapter, and its weights.

use std::path::Path;

use attune_domain::architecture::Architecture;
use attune_domain::spec::AdapterSpec;

use crate::export::importance::Importance;

/// The number type of a model's matrices. Vectors are always 32-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrices {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32 8-bit integers with a 16-bit scale.
    Q8Zero,
    /// llama.cpp's mixture `Q4_K_M`: blocks of 256 4-bit integers, and of 6-bit integers where those matter most.
    Q4KMedium,
}

impl Matrices {
    /// Returns llama.cpp's number of the file's type. Source: `enum llama_ftype` in llama.cpp's `llama.h`.
    pub(crate) const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8Zero => 7,
            Self::Q4KMedium => 15,
        }
    }
}

/// The model to export, without its weights.
#[derive(Debug, Clone, Copy)]
pub struct ModelSource<'a> {
    /// The base's Hugging Face folder, for its configuration and tokenizer.
    pub folder: &'a Path,
    /// The chat template.
    pub template: Option<&'a str>,
    /// The model's name.
    pub name: &'a str,
    /// The licence of the base; `None`: unknown.
    pub license: Option<&'a str>,
    /// The number type of the matrices.
    pub matrices: Matrices,
    /// The importance of the matrices' columns; `None`: unknown.
    pub importance: Option<&'a Importance>,
    /// The number of threads that encode matrices.
    pub threads: usize,
}

/// The adapter to export, without its factors.
#[derive(Debug, Clone, Copy)]
pub struct AdapterSource<'a> {
    /// The base's architecture.
    pub architecture: &'a Architecture,
    /// The adapter's configuration.
    pub spec: &'a AdapterSpec,
    /// The adapter's name.
    pub name: &'a str,
}

/// The progress of an export, in bytes of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The number of bytes written.
    pub done: u64,
    /// The total number of bytes to write.
    pub total: u64,
}

/// The caller's side of an export.
pub trait Weights {
    /// The error of a tensor that cannot be read, or of an export that the caller stops.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Returns the numbers of a tensor, row by row. The factors of a projection `…q_proj` are named `…q_proj.lora_A`
    /// and `…q_proj.lora_B`.
    ///
    /// # Errors
    /// The tensor cannot be read.
    fn read(&mut self, name: &str) -> Result<Vec<f32>, Self::Error>;

    /// Receives the progress after each tensor.
    ///
    /// # Errors
    /// The export is to stop.
    fn written(&mut self, written: Written) -> Result<(), Self::Error>;
}
