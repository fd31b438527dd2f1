//! The files that an export reads, downloaded to this node.

use std::path::PathBuf;

use attune_node::Folder;

/// The files that an export reads, on this node.
#[derive(Debug)]
pub(crate) struct ExportInputs {
    /// The base model's Hugging Face folder.
    pub(crate) base: Folder,
    /// The file of the base's packed weights, which is written if it does not exist.
    pub(crate) packed_base: PathBuf,
    /// The adapter's PEFT folder.
    pub(crate) adapter: PathBuf,
    /// The rows that the importance matrix is computed from, as JSONL.
    pub(crate) calibration: Option<PathBuf>,
}
