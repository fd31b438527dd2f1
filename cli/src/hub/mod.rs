//! Downloads of base models from a model hub, on the user's machine. Hubs are those with the API of Hugging Face;
//! `HF_ENDPOINT` names another one, and `HF_TOKEN` the token for it.
//!
//! Source of the paths and the headers: `hf_api.py` and `file_download.py` of `huggingface_hub` 0.34.

/// The address of a model: `OWNER/NAME@REVISION`.
pub(crate) mod address;
/// The HTTP client of a hub.
pub(crate) mod client;
/// The download of a model's files into a folder.
pub(crate) mod download;
/// The files of a model that an import needs.
mod files;

#[cfg(test)]
mod tests;
