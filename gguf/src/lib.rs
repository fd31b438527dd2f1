//! Base models on their way in: a GGUF file to a Hugging Face folder, and the check of such a folder.
//!
//! Runs on the user's machine, in the command line. Memory is bounded: a tensor is read, dequantised and written in
//! parts. Agrees with transformers' own GGUF reader, by fixtures in `testdata/`; where it departs, it says why.
//! Read in this order.

/// What can go wrong.
pub mod error;

/// A GGUF file's metadata and tensors.
mod source;

/// The rotary embedding from metadata.
mod rope;

/// `config.json` from metadata.
mod config;

/// `generation_config.json` from metadata: the tokens that end an answer.
mod generation;

/// Which tensors an architecture has, under which names.
mod tensors;

/// How text is cut before it is merged, by the name that GGUF gives.
mod pretokenizer;

/// `tokenizer.json` and `tokenizer_config.json` from metadata.
mod tokenizer;

/// The safetensors file, written in parts.
mod weights;

/// A GGUF file to a folder.
pub mod convert;

/// The check of a folder.
pub mod folder;
