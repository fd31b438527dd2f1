//! An address and an API key, and the file that `attune up` writes them into.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Doing, Result},
    up::private,
};

/// The address of a platform and an API key for it, in the format of `credentials.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The API's address, such as `http://127.0.0.1:8080`.
    pub(crate) url: String,
    /// The API key, such as `sk-attune-…`.
    pub(crate) api_key: String,
}

impl Credentials {
    /// Writes `credentials.json` into a data folder, for other commands on this machine.
    ///
    /// # Errors
    /// [`crate::error::CliError::Failed`]: the file cannot be written.
    pub(crate) fn write(&self, data: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).doing(|| "write credentials as JSON".into())?;
        private::write(&data.join("credentials.json"), &(text + "\n"))
    }
}
