//! The search for an address and an API key: flags, profiles, credentials files.

use std::path::{Path, PathBuf};

use crate::{
    connection::{config::user_folder, credentials::Credentials, profiles::Profiles},
    error::{CliError, Doing, Result},
};

/// Finds an address and a key: flags (and their environment variables) first; then only the named profile or, if none
/// is named, the files, in order.
///
/// A key from a file is only sent to the address from the same file.
///
/// # Errors
/// [`CliError::Usage`] if no pair of an address and a key is found, or the profile does not exist.
pub(crate) fn find(
    url: Option<String>,
    key: Option<String>,
    profile: Option<&str>,
    files: &[PathBuf],
) -> Result<Credentials> {
    let url = url.map(|url| url.trim_end_matches('/').trim_end_matches("/v1").to_owned());
    if let (Some(url), Some(api_key)) = (&url, &key) {
        return Ok(Credentials { url: url.clone(), api_key: api_key.clone() });
    }
    for path in files {
        let Some(found) = in_file(path, profile)? else { continue };
        if url.as_ref().is_none_or(|url| *url == found.url) {
            return Ok(Credentials { url: found.url, api_key: key.unwrap_or(found.api_key) });
        }
    }
    let looked: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    Err(CliError::Usage(match url {
        Some(url) => format!("there is no API key for {url}. Use --api-key, or set ATTUNE_API_KEY."),
        None => format!(
            "Attune's address is unknown. Start it here with `attune up`, or use --api-url and --api-key, or set \
             ATTUNE_API_URL and ATTUNE_API_KEY (searched {}).",
            looked.join(" and ")
        ),
    }))
}

/// Reads a file's credentials. A `.toml` file holds profiles; a named profile is searched only there.
fn in_file(path: &Path, profile: Option<&str>) -> Result<Option<Credentials>> {
    let has_profiles = path.extension().is_some_and(|extension| extension == "toml");
    match profile {
        Some(name) if has_profiles => Ok(Some(Profiles::read(path)?.get(name)?.clone())),
        Some(_) => Ok(None),
        None if has_profiles => Ok(Profiles::read(path)?.current().cloned()),
        None => {
            let Ok(text) = std::fs::read(path) else { return Ok(None) };
            serde_json::from_slice(&text).doing(|| format!("parse {}", path.display())).map(Some)
        }
    }
}

/// Returns the files that may hold credentials: the data folder's, then the user's profiles, then the user's file.
pub(crate) fn files(data: &Path) -> Vec<PathBuf> {
    let own =
        user_folder().into_iter().flat_map(|folder| [folder.join("config.toml"), folder.join("credentials.json")]);
    std::iter::once(data.join("credentials.json")).chain(own).collect()
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
        assert_eq!(find(None, None, None, &files).unwrap(), kept);
        assert_eq!(find(Some("http://a/v1/".into()), None, None, &files).unwrap(), kept);
        assert_eq!(find(None, Some("other".into()), None, &files).unwrap().api_key, "other");
        let refused = find(Some("http://b".into()), None, None, &files).unwrap_err().to_string();
        assert_eq!(refused, "there is no API key for http://b. Use --api-key, or set ATTUNE_API_KEY.");
    }

    #[test]
    fn a_named_profile_wins_over_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        Credentials { url: "http://data".into(), api_key: "k".into() }.write(folder.path()).unwrap();
        let profiles = folder.path().join("config.toml");
        let text = "profile = 'home'\n[profiles.home]\nurl = 'http://home'\napi_key = 'h'\n\
                    [profiles.work]\nurl = 'http://work'\napi_key = 'w'\n";
        std::fs::write(&profiles, text).unwrap();
        let files = [folder.path().join("credentials.json"), profiles.clone()];
        let found = |profile, files: &[PathBuf]| find(None, None, profile, files).map(|found| found.url);
        assert_eq!(found(None, &files).unwrap(), "http://data");
        assert_eq!(found(Some("work"), &files).unwrap(), "http://work");
        assert_eq!(found(None, &[profiles]).unwrap(), "http://home");
        assert!(found(Some("none"), &files).unwrap_err().to_string().contains("there are home, work"));
    }

    #[test]
    fn without_any_hint_the_message_says_what_to_do() {
        let refused = find(None, None, None, &["nowhere.json".into()]).unwrap_err();
        assert!(refused.to_string().contains("attune up") && refused.to_string().contains("nowhere.json"));
        assert_eq!(refused.exit_code(), 2);
    }
}
