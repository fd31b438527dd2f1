//! The check of the file names that the platform gives.

use std::path::Path;

use serde_json::Value;

use crate::error::{CliError, Result};

/// Checks that a name from the platform is a plain file name: the platform is not to choose where a file is written.
///
/// # Errors
/// [`CliError::Failed`]: the name is none, or leads to another folder.
pub(crate) fn plain_name(name: &Value) -> Result<&str> {
    name.as_str()
        .filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name))
        .ok_or_else(|| CliError::Failed(format!("the platform names a file {name}, which is not a plain name")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_cannot_leave_its_folder() {
        assert_eq!(plain_name(&json!("adapter_config.json")).unwrap(), "adapter_config.json");
        for name in [json!("../x"), json!("/etc/passwd"), json!("a/b"), json!(".."), json!(""), json!(7)] {
            assert!(plain_name(&name).is_err(), "{name}");
        }
    }
}
