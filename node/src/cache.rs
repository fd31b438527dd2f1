//! The node's cache: `<dir>/<kind>/<key>/<files>`. A folder that exists is complete: it was filled under `tmp/` and
//! renamed after every file in it had been checked. Several processes may share one cache.
//!
//! Every user of `tmp/` holds a shared lock on `tmp/.lock`; a process that gets the exclusive lock knows that all
//! content was left by killed processes, and removes it. The kernel releases the lock of a killed process.
//!
//! The cache has a budget of bytes. Least recently used entries are evicted for new ones, unless a process uses them:
//! it then holds a shared lock on the folder ([`Folder`]).

use std::{
    fs::{self, File},
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use attune_domain::{digest::Sha256, run::RemoteFile, spec::Quantization};
use reqwest::Client;
use tempfile::TempDir;

use crate::{
    error::NodeError,
    fetch::{fetch, plain_name},
};

/// The cache's default budget in bytes; folders in use may exceed it.
pub const CACHE_BYTES: u64 = 64 << 30;

/// A cache folder, open while this value lives.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    tmp: PathBuf,
    budget: u64,
    _in_use: File,
}

/// A folder of the cache, which is not evicted while this value lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _pin: File,
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Cache {
    /// Opens the cache at `dir`, creates it if it does not exist, and removes what killed processes left in `tmp/`.
    ///
    /// # Errors
    /// [`NodeError::Io`], [`NodeError::DiskFull`].
    pub fn open(dir: &Path) -> Result<Self, NodeError> {
        Self::with_budget(dir, CACHE_BYTES)
    }

    /// Opens the cache like [`Cache::open`], with another budget than [`CACHE_BYTES`].
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn with_budget(dir: &Path, budget: u64) -> Result<Self, NodeError> {
        let tmp = dir.join("tmp");
        fs::create_dir_all(&tmp).map_err(NodeError::io(&tmp))?;
        let lock_path = tmp.join(".lock");
        let lock = File::create(&lock_path).map_err(NodeError::io(&lock_path))?;
        if lock.try_lock().is_ok() {
            clear(&tmp)?;
            lock.unlock().map_err(NodeError::io(&lock_path))?;
        }
        lock.lock_shared().map_err(NodeError::io(&lock_path))?;
        Ok(Self { dir: dir.to_owned(), tmp, budget, _in_use: lock })
    }

    /// Creates a temporary folder; it is removed when the value is dropped, or at the next [`Cache::open`].
    ///
    /// # Errors
    /// [`NodeError::Io`], [`NodeError::DiskFull`].
    pub fn scratch(&self) -> Result<TempDir, NodeError> {
        tempfile::Builder::new().prefix("work-").tempdir_in(&self.tmp).map_err(NodeError::io(&self.tmp))
    }

    /// Returns the path of the file `<kind>/<key>`, which the caller may create when its content is complete. `key`
    /// must identify the content.
    ///
    /// # Errors
    /// [`NodeError::BadName`].
    pub fn file(&self, kind: &str, key: &str) -> Result<PathBuf, NodeError> {
        let path = self.dir.join(plain_name(kind)?).join(plain_name(key)?);
        touch(&path);
        Ok(path)
    }

    /// Returns the path of the quantized weights of a base, whether they exist or not: the name includes everything
    /// that they depend on. Trainers and serving processes on a node share them.
    ///
    /// # Errors
    /// [`NodeError::BadName`].
    pub fn packed_base(&self, base_digest: Sha256, quantization: Quantization) -> Result<PathBuf, NodeError> {
        self.file("packed", &format!("{base_digest}-{quantization}.safetensors"))
    }

    /// Returns the folder `<kind>/<key>` with `files`, and fetches it if it does not exist. `key` must identify the
    /// content: of an existing folder, only names and lengths are checked.
    ///
    /// # Errors
    /// The errors of [`fetch`](crate::fetch()). No partial folder is left.
    pub async fn folder(
        &self,
        client: &Client,
        kind: &str,
        key: &str,
        files: &[RemoteFile],
    ) -> Result<Folder, NodeError> {
        let parent = self.dir.join(plain_name(kind)?);
        let target = parent.join(plain_name(key)?);
        loop {
            if let Some(folder) = pinned(&target, files) {
                touch(&folder);
                return Ok(folder);
            }
            fs::create_dir_all(&parent).map_err(NodeError::io(&parent))?;
            self.fill(client, &target, files).await?;
            // Between this and the pin, another process may have evicted it.
        }
    }

    async fn fill(&self, client: &Client, target: &Path, files: &[RemoteFile]) -> Result<(), NodeError> {
        self.ensure_capacity(files.iter().map(|file| file.bytes.0).sum())?;
        let filling = self.scratch()?;
        for file in files {
            tracing::info!(
                file.name = %file.name,
                file.bytes = file.bytes.0,
                "fetching {} ({})",
                file.name,
                file.bytes
            );
            fetch(client, file, filling.path()).await?;
        }
        self.put_in_place(filling, target, files)
    }

    /// Evicts least recently used entries that are not in use, until `bytes` more fit into the budget.
    fn ensure_capacity(&self, bytes: u64) -> Result<(), NodeError> {
        let mut entries = self.entries()?;
        let mut held: u64 = entries.iter().map(|entry| entry.bytes).sum();
        entries.sort_by_key(|entry| entry.used_at);
        for entry in entries {
            if held.saturating_add(bytes) <= self.budget {
                break;
            }
            if self.remove(&entry.path)? {
                tracing::info!(path = %entry.path.display(), bytes = entry.bytes, "removed from the cache");
                held = held.saturating_sub(entry.bytes);
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, NodeError> {
        let mut entries = Vec::new();
        for kind in fs::read_dir(&self.dir).map_err(NodeError::io(&self.dir))? {
            let kind = kind.map_err(NodeError::io(&self.dir))?.path();
            if !kind.is_dir() || kind == self.tmp {
                continue;
            }
            for entry in fs::read_dir(&kind).map_err(NodeError::io(&kind))? {
                let path = entry.map_err(NodeError::io(&kind))?.path();
                // Another process may be evicting it.
                let Ok(metadata) = fs::metadata(&path) else { continue };
                let used_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let bytes = if metadata.is_dir() { bytes_of(&path) } else { metadata.len() };
                entries.push(Entry { path, used_at, bytes });
            }
        }
        Ok(entries)
    }

    /// Removes an entry that no process uses; `false`: a process uses it.
    fn remove(&self, path: &Path) -> Result<bool, NodeError> {
        let Ok(entry) = File::open(path) else { return Ok(false) };
        if entry.try_lock().is_err() {
            return Ok(false);
        }
        // Renamed first, so that no process finds a partly deleted folder.
        let aside = self.scratch()?;
        Ok(fs::rename(path, aside.path().join("old")).is_ok())
    }

    fn put_in_place(&self, filling: TempDir, target: &Path, files: &[RemoteFile]) -> Result<(), NodeError> {
        let filled = filling.keep();
        let outcome = fs::rename(&filled, target).or_else(|_| {
            if holds(target, files) {
                return Ok(()); // another process was faster, and its folder is equivalent
            }
            // The existing folder is incomplete, for example after a disk error, so this process did not create it.
            let aside = self.scratch().map_err(std::io::Error::other)?;
            fs::rename(target, aside.path().join("old"))?;
            fs::rename(&filled, target)
        });
        let _ = fs::remove_dir_all(&filled); // already renamed, unless another process was faster
        outcome.map_err(NodeError::io(target))
    }
}

/// A file or folder of the cache, under a kind and a key.
struct Entry {
    path: PathBuf,
    used_at: SystemTime,
    bytes: u64,
}

/// Locks the folder and returns it, if it contains these files and was not evicted meanwhile.
fn pinned(path: &Path, files: &[RemoteFile]) -> Option<Folder> {
    let pin = File::open(path).ok()?;
    pin.lock_shared().ok()?;
    let (held, there) = (pin.metadata().ok()?, fs::metadata(path).ok()?);
    let is_same = (held.dev(), held.ino()) == (there.dev(), there.ino());
    (is_same && holds(path, files)).then(|| Folder { path: path.to_owned(), _pin: pin })
}

/// Updates the time of last use. If that fails, the entry is only evicted earlier.
fn touch(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

fn bytes_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Returns whether all files exist with their announced lengths.
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
            tracing::info!(path = %path.display(), "removing the files of a killed process");
            fs::remove_dir_all(&path).map_err(NodeError::io(&path))?;
        }
    }
    Ok(())
}
