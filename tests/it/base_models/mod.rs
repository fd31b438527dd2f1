//! The import of base models.

mod gguf;
mod hub;
