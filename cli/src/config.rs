//! What is read from the surroundings: environment variables and credentials files. Nowhere else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{CliError, Doing, Result},
    up::private,
};

/// Where the platform is, and the key to it. The shape of `credentials.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// `http://127.0.0.1:8080`
    pub(crate) url: String,
    /// `sk-attune-…`
    pub(crate) api_key: String,
}

impl Credentials {
    /// Writes them into a data folder, for whoever calls on this machine.
    ///
    /// # Errors
    /// [`CliError::Failed`].
    pub(crate) fn write(&self, data: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).doing(|| "write credentials as JSON".into())?;
        private::write(&data.join("credentials.json"), &(text + "\n"))
    }

    /// Flags (and their variables) first, then the files, in order.
    ///
    /// A key from a file goes only to the address from the same file.
    ///
    /// # Errors
    /// [`CliError::Usage`] if no address and key come together.
    pub(crate) fn find(url: Option<String>, key: Option<String>, files: &[PathBuf]) -> Result<Self> {
        let url = url.map(|url| url.trim_end_matches('/').trim_end_matches("/v1").to_owned());
        if let (Some(url), Some(api_key)) = (&url, &key) {
            return Ok(Self { url: url.clone(), api_key: api_key.clone() });
        }
        for path in files {
            let Ok(text) = std::fs::read(path) else { continue };
            let found: Self = serde_json::from_slice(&text).doing(|| format!("understand {}", path.display()))?;
            if url.as_ref().is_none_or(|url| *url == found.url) {
                return Ok(Self { url: found.url, api_key: key.unwrap_or(found.api_key) });
            }
        }
        let looked: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        Err(CliError::Usage(match url {
            Some(url) => format!("there is no API key for {url}; give --api-key, or set ATTUNE_API_KEY"),
            None => format!(
                "where is Attune? Start it here with `attune up`, or give --api-url and --api-key, or set \
                 ATTUNE_API_URL and ATTUNE_API_KEY (looked into {})",
                looked.join(" and ")
            ),
        }))
    }
}

/// Where credentials files may lie: the data folder, then the user's own.
pub(crate) fn credentials_files(data: &Path) -> Vec<PathBuf> {
    let own = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))
        .map(|folder| folder.join("attune/credentials.json"));
    std::iter::once(data.join("credentials.json")).chain(own).collect()
}

/// The folders of `PATH`.
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::split_paths(&variable("PATH").unwrap_or_default()).collect()
}

/// Variables around us that our children must not see: those of this command line, which api and scheduler would
/// take for settings of theirs (theirs have `__` in them), and, beside a private cluster, PostgreSQL's own.
pub(crate) fn foreign_to_children(private_cluster: bool) -> Vec<OsString> {
    std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            let ours = name.starts_with("ATTUNE_") && !name.contains("__");
            ours || private_cluster && name.starts_with("PG")
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_from_a_file_goes_only_to_its_own_address() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Credentials { url: "http://a".into(), api_key: "k".into() };
        kept.write(folder.path()).unwrap();
        let files = [folder.path().join("credentials.json")];
        assert_eq!(Credentials::find(None, None, &files).unwrap(), kept);
        assert_eq!(Credentials::find(Some("http://a/v1/".into()), None, &files).unwrap(), kept);
        assert_eq!(Credentials::find(None, Some("other".into()), &files).unwrap().api_key, "other");
        let refused = Credentials::find(Some("http://b".into()), None, &files).unwrap_err().to_string();
        assert_eq!(refused, "there is no API key for http://b; give --api-key, or set ATTUNE_API_KEY");
    }

    #[test]
    fn without_any_hint_the_message_says_what_to_do() {
        let refused = Credentials::find(None, None, &["nowhere.json".into()]).unwrap_err();
        assert!(refused.to_string().contains("attune up") && refused.to_string().contains("nowhere.json"));
        assert_eq!(refused.exit_code(), 2);
    }
}
