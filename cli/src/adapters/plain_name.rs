//! The check of file names that the API returns.

use std::path::Path;

use serde_json::Value;

use crate::error::{CliError, Result};

/// Checks that a name from the API is a plain file name, so that the API cannot choose where a file is written.
///
/// # Errors
/// [`CliError::Failed`]: the value is not a string, or the name has a path separator.
pub(crate) fn plain_name(name: &Value) -> Result<&str> {
    name.as_str().filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name)).ok_or_else(|| {
        CliError::Failed(format!("the API returned the file name {name}, which is not a plain file name"))
    })
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
