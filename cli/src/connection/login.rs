//! `attune login`: an address and an API key, kept as a profile.

use std::{
    io::{IsTerminal, Write},
    path::Path,
};

use serde_json::json;

use crate::{
    connection::{client::Client, credentials::Credentials, profiles::Profiles},
    error::{CliError, Doing, Result},
    output,
};

/// The profile that is made and taken when none is named.
const DEFAULT: &str = "default";

/// Keeps an address and a key as a profile, once the platform has taken the key.
///
/// # Errors
/// [`CliError::Usage`]: no address or key. The API's, if it refuses the key. This machine's.
pub(crate) async fn login(path: &Path, name: Option<String>, given: Given, as_json: bool) -> Result<()> {
    let name = name.unwrap_or_else(|| DEFAULT.to_owned());
    let url = given
        .url
        .ok_or_else(|| CliError::Usage("where to? Give --api-url, such as https://attune.example.org".into()))?;
    let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let api_key = match given.key {
        Some(key) => key,
        None => ask_for_key(&url)?,
    };
    let kept = Credentials { url: url.clone(), api_key };
    Client::new(kept.clone())?.get(&["models"]).await?;
    let mut profiles = Profiles::read(path)?;
    profiles.keep(name.clone(), kept);
    profiles.write(path)?;
    if as_json {
        return output::json(&json!({"name": name, "url": url, "current": true}));
    }
    output::line(&format!("profile {name}: {url}"))
}

/// The flags of `attune login`.
#[derive(Debug)]
pub(crate) struct Given {
    /// `--api-url`
    pub(crate) url: Option<String>,
    /// `--api-key`
    pub(crate) key: Option<String>,
}

fn ask_for_key(url: &str) -> Result<String> {
    let read = if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "API key for {url} (not shown): ").and_then(|()| stderr.flush());
        rpassword::read_password()
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    };
    let key = read.doing(|| "read the key".into())?.trim().to_owned();
    if key.is_empty() {
        Err(CliError::Usage("there is no key on standard input; give --api-key".into()))
    } else {
        Ok(key)
    }
}
