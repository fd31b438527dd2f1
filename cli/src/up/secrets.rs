//! Keys that are generated once per data folder and stored in `secrets.json`.
//!
//! PostgreSQL needs none: the kernel identifies its clients (peer authentication on a private socket).

use std::path::Path;

use attune_domain::text::key_text;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::private;
use crate::error::{Doing, Result};

/// The content of `secrets.json`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// The API key of the first project.
    pub(crate) bootstrap_key: String,
    /// The access key ID of the embedded S3 server.
    pub(crate) object_store_access_key_id: String,
    /// The secret access key of the embedded S3 server.
    pub(crate) object_store_secret_access_key: String,
    /// The key that encrypts the secrets of webhook endpoints. A data folder without one gets one at its next start.
    #[serde(default)]
    pub(crate) webhooks_secret_key: String,
}

/// Loads the secrets of `data`; generates them if they do not exist.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: the file cannot be read, parsed or written.
pub(crate) fn load_or_make(data: &Path) -> Result<Secrets> {
    let path = data.join("secrets.json");
    match std::fs::read(&path) {
        Ok(text) => {
            let mut kept: Secrets = serde_json::from_slice(&text).doing(|| format!("parse {}", path.display()))?;
            if kept.webhooks_secret_key.is_empty() {
                kept.webhooks_secret_key = random_text(43);
                write(&path, &kept)?;
            }
            Ok(kept)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let secrets = Secrets {
                bootstrap_key: key_text::compose(&random_text(key_text::RANDOM)),
                object_store_access_key_id: format!("attune-{}", random_text(12)),
                object_store_secret_access_key: random_text(43),
                webhooks_secret_key: random_text(43),
            };
            write(&path, &secrets)?;
            Ok(secrets)
        }
        Err(e) => Err(e).doing(|| format!("read {}", path.display())),
    }
}

fn write(path: &Path, secrets: &Secrets) -> Result<()> {
    let text = serde_json::to_string_pretty(secrets).doing(|| "write secrets as JSON".into())?;
    private::write(path, &text)
}

/// Generates random letters and digits with the thread's generator, which the operating system seeds. 43 characters
/// have 256 bits of entropy.
pub(crate) fn random_text(length: usize) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(random.sample(rand::distr::Alphanumeric))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_make(folder.path()).unwrap();
        let second = load_or_make(folder.path()).unwrap();
        assert_eq!(first.bootstrap_key, second.bootstrap_key);
        assert_eq!(key_text::shape(&first.bootstrap_key), key_text::Shape::Checked);
        assert_eq!(first.webhooks_secret_key, second.webhooks_secret_key);
    }

    #[test]
    fn an_older_folder_gets_the_key_that_it_lacks_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let older =
            r#"{"bootstrap_key": "k", "object_store_access_key_id": "a", "object_store_secret_access_key": "s"}"#;
        std::fs::write(folder.path().join("secrets.json"), older).unwrap();
        let first = load_or_make(folder.path()).unwrap();
        let second = load_or_make(folder.path()).unwrap();
        assert_eq!((first.bootstrap_key.as_str(), first.webhooks_secret_key.len()), ("k", 43));
        assert_eq!(first.webhooks_secret_key, second.webhooks_secret_key);
    }
}
