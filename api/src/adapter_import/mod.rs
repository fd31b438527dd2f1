//! Imports of adapters that were trained outside Attune, in the PEFT format. An import is checked against its base
//! model as strictly as the trainer's own output. Its files stream through, one chunk in memory at a time, and one
//! response lists all defects.

/// The checks of the uploaded files.
pub mod check;
/// The import's multipart form, read as a stream.
pub mod form;
/// The import from its form to its row.
pub mod take;
/// The scan of the safetensors file while it streams.
pub mod tensors;
/// The check of the folder's tokens against the base model's.
pub mod tokens;
