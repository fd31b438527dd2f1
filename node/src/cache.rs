//! The node's cache: `<dir>/<kind>/<key>/<files>`. A folder that exists is complete: it was filled under `tmp/` and
//! renamed after every file in it had been checked. Several processes may share one cache.
//!
//! Every user of `tmp/` holds a shared lock on `tmp/.lock`; a process that gets the exclusive lock knows that all
//! content was left by killed processes, and removes it. The kernel releases the lock of a killed process.
//!
//! The cache has a budget of bytes, and one kind of entries may have a budget of its own. Least recently used entries
//! are evicted for new ones, unless a process uses them: it then holds a shared lock on the folder ([`Folder`]).

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use attune_domain::{bytes::Bytes, digest::Sha256, run::RemoteFile, spec::Quantization};
use attune_process::metrics::ADAPTER_EVICTIONS;
use reqwest::Client;
use tempfile::TempDir;

use crate::{
    error::NodeError,
    fetch::{fetch, plain_name},
};

/// The cache's default budget in bytes; folders in use may exceed it.
pub const CACHE_BYTES: u64 = 64 << 30;

/// The kind of the entries that are adapters; the key is the adapter's ID.
pub const ADAPTERS: &str = "adapter";

/// A cache folder, open while this value or a clone of it lives.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    tmp: PathBuf,
    budget: u64,
    /// The budget of [`ADAPTERS`], within that of the cache.
    adapter_budget: u64,
    _in_use: Arc<File>,
}

/// An entry of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The entry's key.
    pub key: String,
    /// The size of its files.
    pub bytes: Bytes,
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
        Ok(Self { dir: dir.to_owned(), tmp, budget, adapter_budget: budget, _in_use: Arc::new(lock) })
    }

    /// Returns the cache with a budget of its own for [`ADAPTERS`], so that many adapters evict no base.
    #[must_use]
    pub fn with_adapter_budget(self, adapter_budget: Bytes) -> Self {
        Self { adapter_budget: adapter_budget.0, ..self }
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

    /// Returns the folder of a base model with these files, and fetches it if it does not exist.
    ///
    /// # Errors
    /// As [`Cache::folder`].
    pub async fn base(&self, client: &Client, digest: Sha256, files: &[RemoteFile]) -> Result<Folder, NodeError> {
        self.folder(client, "base", &digest.to_string(), files).await
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

    /// Returns whether the folder `<kind>/<key>` exists. Another process may evict it afterwards.
    #[must_use]
    pub fn holds(&self, kind: &str, key: &str) -> bool {
        self.dir.join(kind).join(key).is_dir()
    }

    /// Returns the entries of a kind. Reads the metadata of every file, so it may block.
    ///
    /// # Errors
    /// [`NodeError::Io`].
    pub fn list(&self, kind: &str) -> Result<Vec<Cached>, NodeError> {
        let entries = self.entries()?.into_iter().filter(|entry| entry.is_of(kind));
        Ok(entries.map(|entry| Cached { key: name_of(&entry.path), bytes: Bytes(entry.bytes) }).collect())
    }

    /// Removes the entry `<kind>/<key>`, unless a process uses it. Returns whether it was removed.
    ///
    /// # Errors
    /// [`NodeError::BadName`], [`NodeError::Io`].
    pub fn forget(&self, kind: &str, key: &str) -> Result<bool, NodeError> {
        self.remove(&self.dir.join(plain_name(kind)?).join(plain_name(key)?))
    }

    async fn fill(&self, client: &Client, target: &Path, files: &[RemoteFile]) -> Result<(), NodeError> {
        let bytes = files.iter().map(|file| file.bytes.0).sum();
        let (cache, new) = (self.clone(), target.to_owned());
        // Reads the metadata of all files of the cache, and deletes files.
        let freed = tokio::task::spawn_blocking(move || cache.ensure_capacity(&new, bytes)).await;
        freed.map_err(|e| NodeError::io(target)(io::Error::other(e)))??;
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

    /// Evicts least recently used entries that are not in use, until `bytes` more fit into the budgets, those of the
    /// entry `new`.
    fn ensure_capacity(&self, new: &Path, bytes: u64) -> Result<(), NodeError> {
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| entry.used_at);
        if new.starts_with(self.dir.join(ADAPTERS)) {
            self.evict(&mut entries, bytes, self.adapter_budget, |entry| entry.is_of(ADAPTERS))?;
        }
        self.evict(&mut entries, bytes, self.budget, |_| true)
    }

    /// Evicts those of the entries, in order, until `bytes` more fit into their budget.
    fn evict(
        &self,
        entries: &mut Vec<Entry>,
        bytes: u64,
        budget: u64,
        counts: impl Fn(&Entry) -> bool,
    ) -> Result<(), NodeError> {
        let mut held: u64 = entries.iter().filter(|entry| counts(entry)).map(|entry| entry.bytes).sum();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            let is_full = held.saturating_add(bytes) > budget;
            if is_full && counts(&entry) && self.remove(&entry.path)? {
                tracing::info!(path = %entry.path.display(), bytes = entry.bytes, "removed from the cache");
                if entry.is_of(ADAPTERS) {
                    ADAPTER_EVICTIONS.inc(["disk"]);
                }
                held = held.saturating_sub(entry.bytes);
            } else {
                kept.push(entry);
            }
        }
        *entries = kept;
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

impl Entry {
    fn is_of(&self, kind: &str) -> bool {
        self.path.parent().is_some_and(|parent| name_of(parent) == kind)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
