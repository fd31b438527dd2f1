//! `attune login`: stores an address and an API key as a profile.

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

/// The name of the profile if `--profile` is not set.
const DEFAULT: &str = "default";

/// Stores an address and a key as the current profile, after the API has accepted the key.
///
/// # Errors
/// [`CliError::Usage`]: no address or key. The API's error if it refuses the key. Local errors.
pub(crate) async fn login(path: &Path, name: Option<String>, given: Given, as_json: bool) -> Result<()> {
    let name = name.unwrap_or_else(|| DEFAULT.to_owned());
    let url = given.url.ok_or_else(|| {
        CliError::Usage("--api-url is missing. Set it, such as to https://attune.example.org.".into())
    })?;
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
    /// The value of `--api-url`.
    pub(crate) url: Option<String>,
    /// The value of `--api-key`.
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
        Err(CliError::Usage("there is no key on standard input. Use --api-key.".into()))
    } else {
        Ok(key)
    }
}
