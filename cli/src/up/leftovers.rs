//! PostgreSQL servers that an earlier `attune up` left running on the cluster.
//!
//! Children exit with `attune up`, even after `kill -9`, but need a moment for it. The holder of the folder's lock may
//! stop any server that still runs on the cluster, and must not trust the `postmaster.pid` that it left.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::log::say;
use crate::error::{CliError, Doing, Result};

/// Stops the servers on `data` with increasingly strong signals, waits until they have exited, and removes their stale
/// `postmaster.pid`: its process ID may be reused, and PostgreSQL would then refuse to start.
///
/// # Errors
/// [`CliError::Failed`] if a server cannot be stopped.
pub(crate) async fn end(data: &Path) -> Result<()> {
    let pid_file = data.join("postmaster.pid");
    let started = Instant::now();
    let mut asked = None;
    loop {
        let servers = servers_on(data);
        if servers.is_empty() {
            break;
        }
        let postmaster = fs::read_to_string(&pid_file).ok().and_then(|text| text.lines().next()?.trim().parse().ok());
        let (after, signal) = match started.elapsed().as_secs() {
            0..20 => (0, Signal::SIGINT),
            20..30 => (20, Signal::SIGQUIT),
            30..40 => (30, Signal::SIGKILL),
            _ => {
                return Err(CliError::Failed(format!(
                    "cannot stop the PostgreSQL servers {servers:?} of an earlier start. Stop them manually."
                )));
            }
        };
        if asked != Some(after) {
            say("waiting for the PostgreSQL server of an earlier start to stop");
            let targets = match postmaster {
                Some(main) if servers.contains(&main) => vec![main], // it stops the others in order
                _ => servers,
            };
            for pid in targets {
                match kill(Pid::from_raw(pid), signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => return Err(e).doing(|| format!("stop process {pid}")),
                }
            }
            asked = Some(after);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    match fs::remove_file(&pid_file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(|| format!("remove the stale {}", pid_file.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the IDs of the PostgreSQL processes that run on `data`; all of them have it as their working directory.
fn servers_on(data: &Path) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|process| {
            let inside = fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data);
            inside && fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "postgres")
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}
