//! The address of a model in a hub.

use attune_domain::hub_origin::{is_repository, is_revision};

use crate::error::{CliError, Result};

/// The prefix of an address on the command line.
pub(crate) const PREFIX: &str = "hf:";

/// The revision of an address without one.
const DEFAULT_REVISION: &str = "main";

/// A model in a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubModel {
    /// The repository: `OWNER/NAME`.
    pub(crate) repository: String,
    /// The branch, tag or commit.
    pub(crate) revision: String,
}

impl HubModel {
    /// Parses `OWNER/NAME` or `OWNER/NAME@REVISION`, without the prefix.
    ///
    /// # Errors
    /// [`CliError::Usage`].
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        if !is_repository(repository) || !is_revision(revision) {
            let message = format!(
                "{PREFIX}{text} is not a model of a hub. Use {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION."
            );
            return Err(CliError::Usage(message));
        }
        Ok(Self { repository: repository.into(), revision: revision.into() })
    }

    /// Returns the default name of the base model: that of the repository, in lower case.
    pub(crate) fn base_name(&self) -> String {
        let name = self.repository.rsplit('/').next().unwrap_or_default();
        name.to_ascii_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_repository_and_may_have_a_revision() {
        let model = HubModel::parse("HuggingFaceTB/SmolLM2-135M@v1.0").unwrap();
        assert_eq!((model.repository.as_str(), model.revision.as_str()), ("HuggingFaceTB/SmolLM2-135M", "v1.0"));
        assert_eq!(model.base_name(), "smollm2-135m");
        assert_eq!(HubModel::parse("a/b").unwrap().revision, "main");
        assert_eq!(HubModel::parse("a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        for wrong in ["", "a", "a/b/c", "a/b@", "a/../b", "a/b@../x", "https://x/a/b"] {
            assert_eq!(HubModel::parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
