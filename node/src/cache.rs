//! The node's cache: `<dir>/<kind>/<key>/<files>`. A folder that is there is complete: it was filled under `tmp/` and
//! renamed when every file in it had been checked. Several processes may share one cache.
//!
//! Every user of `tmp/` holds a shared lock on `tmp/.lock`; who gets it alone knows that whatever lies there was left by
//! a process that was killed, and removes it. The kernel drops the lock of a killed process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use attune_domain::run::RemoteFile;
use reqwest::Client;
use tempfile::TempDir;

use crate::{
    error::NodeError,
    fetch::{fetch, plain_name},
};

/// A cache folder, open for as long as this lives.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    tmp: PathBuf,
    _in_use: File,
}

impl Cache {
    /// Opens the cache at `dir`, makes it if it is not there, and clears what killed processes left in `tmp/`.
    ///
    /// # Errors
    /// [`NodeError::Io`], [`NodeError::DiskFull`].
    pub fn open(dir: &Path) -> Result<Self, NodeError> {
        let tmp = dir.join("tmp");
        fs::create_dir_all(&tmp).map_err(NodeError::io(&tmp))?;
        let lock_path = tmp.join(".lock");
        let lock = File::create(&lock_path).map_err(NodeError::io(&lock_path))?;
        if lock.try_lock().is_ok() {
            clear(&tmp)?;
            lock.unlock().map_err(NodeError::io(&lock_path))?;
        }
        lock.lock_shared().map_err(NodeError::io(&lock_path))?;
        Ok(Self { dir: dir.to_owned(), tmp, _in_use: lock })
    }

    /// A new folder for what is only needed now; it goes when the value is dropped, or at the next [`Cache::open`].
    ///
    /// # Errors
    /// [`NodeError::Io`], [`NodeError::DiskFull`].
    pub fn scratch(&self) -> Result<TempDir, NodeError> {
        tempfile::Builder::new().prefix("work-").tempdir_in(&self.tmp).map_err(NodeError::io(&self.tmp))
    }

    /// Where the file `<kind>/<key>` is, or may be put when it is whole. `key` must name the content.
    ///
    /// # Errors
    /// [`NodeError::BadName`].
    pub fn file(&self, kind: &str, key: &str) -> Result<PathBuf, NodeError> {
        Ok(self.dir.join(plain_name(kind)?).join(plain_name(key)?))
    }

    /// The folder `<kind>/<key>` with `files`; fetched if it is not there. `key` must name the content, for what is
    /// there is not read again, only counted.
    ///
    /// # Errors
    /// Those of [`fetch`](crate::fetch()). Nothing is left half-made.
    pub async fn folder(
        &self,
        client: &Client,
        kind: &str,
        key: &str,
        files: &[RemoteFile],
    ) -> Result<PathBuf, NodeError> {
        let parent = self.dir.join(plain_name(kind)?);
        let target = parent.join(plain_name(key)?);
        if holds(&target, files) {
            return Ok(target);
        }
        fs::create_dir_all(&parent).map_err(NodeError::io(&parent))?;
        let filling = self.scratch()?;
        for file in files {
            tracing::info!(file.name = %file.name, file.bytes = file.bytes.0, "fetching {} ({})", file.name, file.bytes);
            fetch(client, file, filling.path()).await?;
        }
        self.put_in_place(filling, &target, files)?;
        Ok(target)
    }

    fn put_in_place(&self, filling: TempDir, target: &Path, files: &[RemoteFile]) -> Result<(), NodeError> {
        let filled = filling.keep();
        let outcome = fs::rename(&filled, target).or_else(|_| {
            if holds(target, files) {
                return Ok(()); // another process was faster, and its folder is as good
            }
            // Something is there that is not complete, so it is not ours: a folder from a damaged disk, say.
            let aside = self.scratch().map_err(std::io::Error::other)?;
            fs::rename(target, aside.path().join("old"))?;
            fs::rename(&filled, target)
        });
        let _ = fs::remove_dir_all(&filled); // gone already, unless another process was faster
        outcome.map_err(NodeError::io(target))
    }
}

/// All files are there in their announced lengths.
fn holds(folder: &Path, files: &[RemoteFile]) -> bool {
    folder.is_dir()
        && files.iter().all(|file| {
            plain_name(&file.name).is_ok()
                && fs::metadata(folder.join(&file.name)).is_ok_and(|m| m.is_file() && m.len() == file.bytes.0)
        })
}

fn clear(tmp: &Path) -> Result<(), NodeError> {
    for entry in fs::read_dir(tmp).map_err(NodeError::io(tmp))? {
        let path = entry.map_err(NodeError::io(tmp))?.path();
        if path.is_dir() {
            tracing::info!(path = %path.display(), "removing what a killed process left");
            fs::remove_dir_all(&path).map_err(NodeError::io(&path))?;
        }
    }
    Ok(())
}
