//! The environment variables that this program reads; only the flags have others, which clap reads.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The user's own folder of settings; `None`: nobody says where.
pub(crate) fn user_folder() -> Option<PathBuf> {
    variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))
        .map(|folder| folder.join("attune"))
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
