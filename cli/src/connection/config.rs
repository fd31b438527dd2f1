//! The environment variables that this program reads, in addition to those of flags, which clap reads.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Returns the user's configuration folder; `None` if neither `XDG_CONFIG_HOME` nor `HOME` is set.
pub(crate) fn user_folder() -> Option<PathBuf> {
    variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))
        .map(|folder| folder.join("attune"))
}

/// Returns the folder for content that can be downloaded again; `None` if neither `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|folder| folder.join("attune"))
}

/// Returns the address of the model hub, `HF_ENDPOINT`.
pub(crate) fn hub_endpoint() -> Option<String> {
    variable("HF_ENDPOINT")?.into_string().ok()
}

/// Returns the token for the model hub, `HF_TOKEN`.
pub(crate) fn hub_token() -> Option<String> {
    variable("HF_TOKEN")?.into_string().ok()
}

/// Returns the folders of `PATH`.
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::split_paths(&variable("PATH").unwrap_or_default()).collect()
}

/// The variables of this name's form that are all programs'.
const PASSED_ON: [&str; 2] = ["ATTUNE_LOG_FORMAT", "ATTUNE_METRICS_LISTEN"];

/// Returns the names of the environment variables that child processes must not inherit: those of this command line,
/// which the API and the scheduler would read as their own settings (theirs contain `__`), and, with a private
/// cluster, those of PostgreSQL.
pub(crate) fn foreign_to_children(private_cluster: bool) -> Vec<OsString> {
    std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            let is_passed_on = PASSED_ON.contains(&name.as_ref()) || name.starts_with("ATTUNE_FAILPOINTS");
            let ours = name.starts_with("ATTUNE_") && !name.contains("__") && !is_passed_on;
            ours || private_cluster && name.starts_with("PG")
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
