//! The folder and the account of the private PostgreSQL cluster.
//!
//! PostgreSQL refuses to run as root, so root's `attune up` runs it as `postgres` or as the unprivileged account. That
//! user often cannot traverse the path of the folder (such as `/root`), so it inherits the opened folder as file
//! descriptor 9, and accesses it as `/proc/self/fd/9`.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::unistd::{Gid, Uid, User, geteuid};
use tokio::process::Command;

use super::lock;
use crate::error::{CliError, Doing, Result};

/// The path of the home for the cluster's user. See [`ENTER`].
const HOME: &str = "/proc/self/fd/9";
/// The shell script that opens the home, changes to `/`, which every user may enter, and executes `setpriv`, which
/// executes PostgreSQL. The process ID does not change, so PostgreSQL is a direct child.
const ENTER: &str = r#"exec 9<"$1"; cd /; shift; exec setpriv "$@""#;
/// The longest path of a Unix socket, without the final zero byte; `sun_path` in unix(7).
const SOCKET_PATH_BYTES: usize = 107;

/// The user and group that PostgreSQL runs as, if `attune up` runs as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: Uid,
    gid: Gid,
}

/// A cluster's home, with `data` in it, and `socket` if the path is short enough for a Unix socket.
pub(crate) struct Place {
    /// The canonical path.
    pub(crate) home: PathBuf,
    /// The folder of the socket.
    pub(crate) socket: PathBuf,
    /// The account of the server; `None` is the current user.
    account: Option<Account>,
    /// The lock of the home: two data folders may share it through a link, and must not both start it.
    _lock: lock::FolderLock,
}

impl Place {
    /// Finds or creates the home of the cluster of `data`.
    ///
    /// # Errors
    /// [`CliError::Failed`]: the folder or its owner is not usable; [`CliError::AlreadyRunning`]: the cluster runs for
    /// another data folder.
    pub(crate) fn find(data: &Path) -> Result<Self> {
        let home = data.join("postgres");
        if !home.exists() {
            folder(&home)?;
        }
        let home = home.canonicalize().doing(|| format!("read {}", home.display()))?;
        let account = account_for(&home)?;
        hand_over(&home, account)?;
        let lock = lock::take(&home)?;
        let socket = socket_folder(&home, account)?;
        Ok(Self { home, socket, account, _lock: lock })
    }

    /// Returns the cluster's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Creates a command that runs as the cluster's user, receives SIGINT when the main thread ends (however it
    /// ends), and inherits no environment variables, such as `PG…`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ENTER, "attune"]).arg(&self.home).args(["--pdeathsig", "INT"]);
        if let Some(Account { uid, gid }) = self.account {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
        }
        command.arg("--").arg(program).process_group(0).kill_on_drop(true).stdin(Stdio::null());
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command
    }

    /// Returns the name of a path in the home for a program that runs by [`command`](Self::command).
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.home).map_or_else(|_| path.to_path_buf(), |below| Path::new(HOME).join(below))
    }

    /// Changes the owner of `path` to the cluster's user.
    ///
    /// # Errors
    /// [`CliError::Failed`]: the owner cannot be changed.
    pub(crate) fn hand_over(&self, path: &Path) -> Result<()> {
        hand_over(path, self.account)
    }

    /// Returns the names of the users that may connect to the database: the current user, and the server's.
    ///
    /// # Errors
    /// [`CliError::Failed`] if a user has no name on this machine, since PostgreSQL requires one.
    pub(crate) fn user_names(&self) -> Result<Vec<String>> {
        let mut names = vec![name_of(geteuid())?];
        if let Some(account) = self.account {
            names.push(name_of(account.uid)?);
        }
        Ok(names)
    }
}

fn name_of(uid: Uid) -> Result<String> {
    let user = User::from_uid(uid).doing(|| format!("look up user {uid}"))?;
    user.map(|user| user.name).ok_or_else(|| {
        CliError::Failed(format!(
            "user {uid} has no name on this machine (no line in /etc/passwd), and PostgreSQL requires one. Add a \
             name, or set --database-url."
        ))
    })
}

/// Returns the account for a cluster in `home`: its owner, if that is not root. `None` is the current user.
fn account_for(home: &Path) -> Result<Option<Account>> {
    let owner = fs::metadata(home).doing(|| format!("read {}", home.display()))?;
    let me = geteuid();
    if !me.is_root() {
        if owner.uid() != me.as_raw() {
            return Err(CliError::Failed(format!(
                "the database folder {} belongs to user {}. Run attune as that user.",
                home.display(),
                owner.uid()
            )));
        }
        return Ok(None);
    }
    if owner.uid() != 0 {
        return Ok(Some(Account { uid: Uid::from_raw(owner.uid()), gid: Gid::from_raw(owner.gid()) }));
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).doing(|| format!("look up user {name}"))? {
            return Ok(Some(Account { uid: user.uid, gid: user.gid }));
        }
    }
    let no_user = "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as";
    Err(CliError::Failed(no_user.into()))
}

fn hand_over(path: &Path, account: Option<Account>) -> Result<()> {
    let Some(Account { uid, gid }) = account else { return Ok(()) };
    chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
        .doing(|| format!("change the owner of {} to user {uid}", path.display()))
}

fn folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).doing(|| format!("create the folder {}", path.display()))
}

/// Returns `<home>/socket`, or a temporary folder if that path is too long for a socket.
fn socket_folder(home: &Path, account: Option<Account>) -> Result<PathBuf> {
    let record = home.join("socket-folder");
    if let Ok(stale) = fs::read_to_string(&record) {
        drop(fs::remove_dir_all(stale.trim()));
        drop(fs::remove_file(&record));
    }
    let near = home.join("socket");
    if near.join(".s.PGSQL.5432").as_os_str().len() <= SOCKET_PATH_BYTES {
        if !near.exists() {
            folder(&near)?;
        }
        hand_over(&near, account)?;
        return Ok(near);
    }
    // A new random name with mode 0700, so that no other user can have created it in advance.
    let far =
        tempfile::Builder::new().prefix("attune-").tempdir_in("/tmp").doing(|| "create a folder in /tmp".into())?;
    fs::write(&record, far.path().display().to_string()).doing(|| format!("write {}", record.display()))?;
    hand_over(far.path(), account)?;
    Ok(far.keep())
}

impl Drop for Place {
    /// Removes the socket folder under `/tmp`; after a `kill -9`, the next start removes it.
    fn drop(&mut self) {
        if !self.socket.starts_with(&self.home) {
            drop(fs::remove_dir_all(&self.socket));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_has_its_socket_under_tmp_and_the_next_start_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("x".repeat(100));
        fs::create_dir(&home).unwrap();
        let first = socket_folder(&home, None).unwrap();
        assert!(first.starts_with("/tmp") && first.exists());
        let second = socket_folder(&home, None).unwrap();
        assert!(!first.exists() && second.exists());
        fs::remove_dir(second).unwrap();
    }
}
