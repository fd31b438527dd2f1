//! The import of base models: conversion of a GGUF file to a Hugging Face folder, and the check of such a folder; and
//! the export of models and adapters as GGUF files.
//!
//! The import runs on the user's machine, in the command line; the export on a node. Memory is bounded: tensors are
//! read, converted and written in parts. The results agree with transformers' own GGUF reader, tested with fixtures in
//! `testdata/`; a comment explains each difference. The modules are listed in reading order.

/// The errors of an import.
pub mod error;

/// A GGUF file's metadata and tensors.
mod source;

/// The rotary embedding, from metadata.
mod rope;

/// `config.json`, from metadata.
mod config;

/// `generation_config.json`, from metadata: the tokens that end an answer.
mod generation;

/// The tensors of an architecture and their names.
mod tensors;

/// The pre-tokenizers that GGUF names.
mod pretokenizer;

/// `tokenizer.json` and `tokenizer_config.json`, from metadata.
mod tokenizer;

/// The safetensors writer, in parts.
mod weights;

/// The licence of a model.
mod license;

/// The conversion of a GGUF file to a folder.
pub mod convert;

/// The check of a folder.
pub mod folder;

/// The export of a model or an adapter as a GGUF file.
pub mod export;
