//! The export of a model or an adapter as a GGUF file.
//!
//! The caller provides the weights, tensor by tensor, as 32-bit floats; memory does not grow with the model. The keys,
//! names and numbers are those of llama.cpp's `convert_hf_to_gguf.py` and `convert_lora_to_gguf.py`, and a test reads
//! each file with this crate's own reader.

/// An adapter as a GGUF file.
pub mod adapter;

/// The errors of an export.
pub mod error;

/// A GGUF file, written tensor by tensor.
mod file;

/// The keys of a model's hyperparameters.
mod hyperparameters;

/// The importance of the columns of matrices.
pub mod importance;

/// The caller's side of an export.
pub mod interface;

/// The number types of tensors.
mod kind;

/// A GGUF file's header.
mod metadata;

/// The number types of a model's tensors.
mod mixture;

/// A model as a GGUF file.
pub mod model;

/// llama.cpp's names of architectures, and its order of rows.
mod names;

/// The Modelfile with which Ollama loads an exported model.
pub mod ollama;

/// The block formats of quantized weights.
mod quants;

/// The tensors of an export, encoded in parts.
mod tensors;

/// The keys of a model's tokenizer.
mod vocabulary;
