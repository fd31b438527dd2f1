//! Where the private PostgreSQL cluster lies, and as whom it runs.
//!
//! PostgreSQL refuses to run as root, so root's `attune up` runs it as `postgres` or `nobody`. That user often cannot
//! walk down to the folder (nobody may enter `/root`), so it gets the folder itself: opened by us, handed over as file
//! descriptor 9, and known to it as `/proc/self/fd/9`.

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

/// The home as the cluster's user sees it. See [`ENTER`].
const HOME: &str = "/proc/self/fd/9";
/// Opens the home, goes where everyone may be, and becomes the program: `setpriv`, which becomes PostgreSQL. The
/// process stays the same all along, so it is our child.
const ENTER: &str = r#"exec 9<"$1"; cd /; shift; exec setpriv "$@""#;
/// The longest path of a Unix socket is 107 bytes and a final zero; `sun_path` in unix(7).
const SOCKET_PATH_BYTES: usize = 107;

/// The user that servers run as when we are root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: Uid,
    gid: Gid,
}

/// A cluster's home: `data` lies in it, and `socket` if its path is short enough for one.
pub(crate) struct Place {
    /// Its full name.
    pub(crate) home: PathBuf,
    /// Where clients find the socket.
    pub(crate) socket: PathBuf,
    /// `None`: ourselves.
    account: Option<Account>,
    /// Two data folders may share a home through a link; they must not both start it.
    _lock: lock::FolderLock,
}

impl Place {
    /// Finds or makes the place for the cluster of `data`.
    ///
    /// # Errors
    /// [`CliError::Failed`] in sentences about users and folders; [`CliError::AlreadyRunning`] if the cluster is up
    /// for another data folder.
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

    /// The cluster itself.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// A command that runs as the cluster's user, gets SIGINT when our main thread ends (however it ends), and knows
    /// nothing of the `PG…` variables around us.
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

    /// A path in the home, as a program run by [`command`](Self::command) must call it.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.home).map_or_else(|_| path.to_path_buf(), |below| Path::new(HOME).join(below))
    }

    /// Gives `path` to the cluster's user.
    ///
    /// # Errors
    /// [`CliError::Failed`].
    pub(crate) fn hand_over(&self, path: &Path) -> Result<()> {
        hand_over(path, self.account)
    }

    /// The names of the users who may enter the database: ourselves, and the one that it runs as.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the system knows no name; PostgreSQL cannot do without.
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
            "user {uid} has no name on this machine (no line in /etc/passwd), and PostgreSQL does not run without; \
             give it one, or give --database-url"
        ))
    })
}

/// Who runs a cluster in `home`: its owner, if it has been handed over before.
fn account_for(home: &Path) -> Result<Option<Account>> {
    let owner = fs::metadata(home).doing(|| format!("read {}", home.display()))?;
    let me = geteuid();
    if !me.is_root() {
        if owner.uid() != me.as_raw() {
            return Err(CliError::Failed(format!(
                "the database folder {} belongs to user {}; run attune as the user who made it",
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
    chown(path, Some(uid.as_raw()), Some(gid.as_raw())).doing(|| format!("give {} to user {uid}", path.display()))
}

fn folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).doing(|| format!("make the folder {}", path.display()))
}

/// `<home>/socket`, or a short-lived folder where that path is too long for a socket.
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
    // A fresh random name, mode 0700: nobody can have laid it out for us.
    let far = tempfile::Builder::new().prefix("attune-").tempdir_in("/tmp").doing(|| "make a folder in /tmp".into())?;
    fs::write(&record, far.path().display().to_string()).doing(|| format!("write {}", record.display()))?;
    hand_over(far.path(), account)?;
    Ok(far.keep())
}

impl Drop for Place {
    /// The folder under `/tmp` goes with us; after a `kill -9` the next start removes it.
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
