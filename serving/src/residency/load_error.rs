//! The reasons why an adapter cannot be loaded.

use attune_domain::bytes::Bytes;
use attune_model::error::ModelError;
use attune_node::NodeError;
use attune_text::error::TextError;

/// The reason why an adapter cannot be loaded. It concerns the requests for this adapter alone.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files cannot be fetched: one is missing or has other content, the store is unavailable, or the disk is full.
    #[error(transparent)]
    Fetch(#[from] NodeError),
    /// The files are no adapter of this base.
    #[error(transparent)]
    Content(#[from] ModelError),
    /// The chat template or the tokenizer's configuration in the folder is not valid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The adapters of a merge do not fit together.
    #[error(transparent)]
    Merge(ModelError),
    /// The adapter needs more memory than the limit of all adapters.
    #[error("it needs {size} of memory, and the limit for all adapters is {limit}")]
    TooLarge {
        /// The memory of its factors.
        size: Bytes,
        /// The limit of all adapters.
        limit: Bytes,
    },
    /// Adapters in use hold the memory, or pinned ones if it is a prefetch, and the load does not wait any longer.
    #[error("it needs {size} of memory, which other adapters hold")]
    NoMemory {
        /// The memory of its factors.
        size: Bytes,
    },
    /// Another engine cannot serve the adapter, or did not load it.
    #[error("{0}")]
    Engine(String),
    /// The load was interrupted.
    #[error("{0}")]
    Interrupted(String),
}

impl LoadError {
    /// Returns the reason's name in metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Fetch(NodeError::Refused { .. }) => "missing",
            Self::Fetch(NodeError::Changed { .. }) => "changed",
            Self::Fetch(NodeError::DiskFull { .. }) => "disk_full",
            Self::Fetch(NodeError::Io { .. }) => "disk",
            Self::Fetch(NodeError::Away { .. } | NodeError::Busy { .. }) => "store",
            Self::Content(_) | Self::Text(_) => "content",
            Self::Merge(_) => "merge",
            Self::TooLarge { .. } | Self::NoMemory { .. } => "memory",
            Self::Fetch(_) | Self::Engine(_) | Self::Interrupted(_) => "other",
        }
    }

    /// Returns whether the files on the disk are at fault.
    pub(crate) const fn is_content(&self) -> bool {
        matches!(self, Self::Content(_) | Self::Text(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_what_has_to_be_repaired() {
        let file = || "adapter_model.safetensors".to_owned();
        let errors = [
            (NodeError::Refused { what: file(), status: 404, body: String::new() }, "missing"),
            (NodeError::Changed { name: file(), want: String::new(), got: String::new() }, "changed"),
            (NodeError::DiskFull { path: file().into() }, "disk_full"),
            (NodeError::Busy { what: file(), status: 503 }, "store"),
            (NodeError::BadName(file()), "other"),
        ];
        for (error, reason) in errors {
            let error = LoadError::from(error);
            assert_eq!((error.reason(), error.is_content()), (reason, false), "{error}");
        }
        let content = LoadError::from(ModelError::NotFinite("lora_A".into()));
        assert_eq!((content.reason(), content.is_content()), ("content", true));
        let merge = LoadError::Merge(ModelError::NotFinite("lora_A".into()));
        assert_eq!((merge.reason(), merge.is_content()), ("merge", false));
    }
}
