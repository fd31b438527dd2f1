//! Profiles: named addresses and API keys, in `~/.config/attune/config.toml`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    connection::credentials::Credentials,
    error::{CliError, Doing, Result},
    output,
    up::private,
};

/// The content of the profiles file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profiles {
    /// The name of the current profile, which is used when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// The profiles by name.
    #[serde(default)]
    profiles: BTreeMap<String, Credentials>,
}

/// The subcommands of `attune profile`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// List the profiles
    List,
    /// Make a profile the current one
    Use {
        /// The profile's name
        name: String,
    },
    /// Delete a profile and its key
    Remove {
        /// The profile's name
        name: String,
    },
}

impl Profiles {
    /// Reads the file; a file that cannot be read counts as empty.
    ///
    /// # Errors
    /// [`CliError::Usage`]: the file is not TOML, or has unknown keys.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(Self::default()) };
        toml::from_str(&text).map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// [`CliError::Failed`]: the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            private::folder(folder)?;
        }
        private::write(path, &toml::to_string(self).doing(|| "write profiles as TOML".into())?)
    }

    /// Returns a profile by name.
    ///
    /// # Errors
    /// [`CliError::Usage`]: no profile has this name.
    pub(crate) fn get(&self, name: &str) -> Result<&Credentials> {
        let names: Vec<_> = self.profiles.keys().map(String::as_str).collect();
        self.profiles.get(name).ok_or_else(|| {
            let there = if names.is_empty() {
                "there are no profiles yet".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            CliError::Usage(format!(
                "there is no profile '{name}'; {there}. Create it with `attune login --profile {name}`."
            ))
        })
    }

    /// Returns the current profile, which is used when none is named.
    pub(crate) fn current(&self) -> Option<&Credentials> {
        self.profiles.get(self.profile.as_deref()?)
    }

    /// Stores a profile under a name and makes it the current one.
    pub(crate) fn keep(&mut self, name: String, credentials: Credentials) {
        self.profiles.insert(name.clone(), credentials);
        self.profile = Some(name);
    }

    fn known(&self, name: &str) -> Result<()> {
        self.get(name).map(drop)
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the profile does not exist, or the file cannot be written.
pub(crate) fn run(path: &Path, command: &ProfileCommand, as_json: bool) -> Result<()> {
    let mut profiles = Profiles::read(path)?;
    match command {
        ProfileCommand::List => return list(&profiles, as_json),
        ProfileCommand::Use { name } => {
            profiles.known(name)?;
            profiles.profile = Some(name.clone());
        }
        ProfileCommand::Remove { name } => {
            profiles.known(name)?;
            profiles.profiles.remove(name);
            profiles.profile = profiles.profile.filter(|current| current != name);
        }
    }
    profiles.write(path)?;
    list(&profiles, as_json)
}

fn list(profiles: &Profiles, as_json: bool) -> Result<()> {
    let is_current = |name: &String| profiles.profile.as_ref() == Some(name);
    if as_json {
        let data: Vec<_> = profiles
            .profiles
            .iter()
            .map(|(name, kept)| json!({"name": name, "url": kept.url, "current": is_current(name)}))
            .collect();
        return output::json(&json!({"object": "list", "data": data}));
    }
    let rows = profiles.profiles.iter().map(|(name, kept)| {
        let mark = if is_current(name) { "*" } else { "" };
        vec![mark.to_owned(), name.clone(), kept.url.clone()]
    });
    output::table(&["", "PROFILE", "URL"], rows.collect(), "No profiles yet. Create one with `attune login`.")
}

/// Returns the path of the profiles file in the user's configuration folder.
pub(crate) fn path(folder: Option<PathBuf>) -> Result<PathBuf> {
    let none = || {
        CliError::Failed("profiles cannot be stored: neither HOME nor XDG_CONFIG_HOME is set. Set one of them.".into())
    };
    Ok(folder.ok_or_else(none)?.join("config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_kept_for_their_owner_alone_and_read_again() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attune/config.toml");
        assert_eq!(Profiles::read(&path).unwrap(), Profiles::default());
        let mut profiles = Profiles::default();
        for name in ["home", "work"] {
            let kept = Credentials { url: format!("https://{name}"), api_key: "k".into() };
            profiles.profiles.insert(name.into(), kept);
        }
        profiles.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        run(&path, &ProfileCommand::Use { name: "work".into() }, true).unwrap();
        let read = Profiles::read(&path).unwrap();
        assert_eq!(read.current().unwrap().url, "https://work");
        assert_eq!(read.get("home").unwrap().url, "https://home");
        let refused = read.get("none").unwrap_err().to_string();
        assert!(refused.contains("there are home, work"), "{refused}");
        run(&path, &ProfileCommand::Remove { name: "work".into() }, false).unwrap();
        let read = Profiles::read(&path).unwrap();
        assert_eq!((read.current(), read.get("work").is_err()), (None, true));
    }

    #[test]
    fn a_file_with_an_unknown_key_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "profil = 'x'").unwrap();
        assert!(Profiles::read(file.path()).unwrap_err().to_string().contains("profil"));
    }
}
