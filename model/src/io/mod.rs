//! Weights in safetensors files.

pub mod stream; // one .safetensors file, written tensor by tensor
pub mod tensor_file; // one .safetensors file, read and written
pub mod weights; // the weights of a Hugging Face folder, checked
