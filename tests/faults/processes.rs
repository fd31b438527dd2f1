//! The processes that a platform's scheduler has started: trainers and replicas, also those that lost their parent.

use std::{fs, path::Path};

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Returns the IDs of the processes of this program that work below `folder`.
pub(crate) fn of(program: &str, folder: &Path) -> Result<Vec<i32>> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ended has no command line.
        let Ok(bytes) = fs::read(format!("/proc/{id}/cmdline")) else { continue };
        let command = String::from_utf8_lossy(&bytes);
        let is_it = command.split('\0').next().is_some_and(|path| path.ends_with(program));
        if is_it && command.contains(&folder) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Sends a signal; returns whether the process existed.
pub(crate) fn signal(id: i32, signal: Signal) -> bool {
    kill(Pid::from_raw(id), signal).is_ok()
}
