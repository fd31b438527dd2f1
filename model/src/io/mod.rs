//! Weights in safetensors files.

pub mod tensor_file; // one .safetensors file, read and written
pub mod weights; // the weights of a Hugging Face folder, checked
