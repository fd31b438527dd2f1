//! The node's cache: `<dir>/<kind>/<key>/<files>`. A folder that is there is complete: it was filled under `tmp/` and
//! renamed when every file in it had been checked. Several processes may share one cache.
//!
//! Every user of `tmp/` holds a shared lock on `tmp/.lock`; who gets it alone knows that whatever lies there was left by
//! a process that was killed, and removes it. The kernel drops the lock of a killed process.
//!
//! The cache has a budget of bytes. What was used least recently makes room for what is fetched, unless a process has it
//! in use: such a process holds a shared lock on the folder ([`Folder`]).

use std::{
    fs::{self, File},
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use attune_domain::{run::RemoteFile, spec::Quantization};
use reqwest::Client;
use tempfile::TempDir;

use crate::{
    error::NodeError,
    fetch::{fetch, plain_name},
};

/// What a cache may hold beside the folders that are in use.
pub const CACHE_BYTES: u64 = 64 << 30;

/// A cache folder, open for as long as this lives.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    tmp: PathBuf,
    budget: u64,
    _in_use: File,
}

/// A folder of the cache, which nobody removes as long as this lives.
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
    /// Opens the cache at `dir`, makes it if it is not there, and clears what killed processes left in `tmp/`.
    ///
    /// # Errors
    /// [`NodeError::Io`], [`NodeError::DiskFull`].
    pub fn open(dir: &Path) -> Result<Self, NodeError> {
        Self::with_budget(dir, CACHE_BYTES)
    }

    /// As [`Cache::open`], with another budget than [`CACHE_BYTES`].
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
        let path = self.dir.join(plain_name(kind)?).join(plain_name(key)?);
        touch(&path);
        Ok(path)
    }

    /// Where the quantized weights of a base are, or will be: the name says all that they depend on. Trainers and serving
    /// processes on a node share them.
    ///
    /// # Errors
    /// [`NodeError::BadName`].
    pub fn packed_base(&self, base_digest: &str, quantization: Quantization) -> Result<PathBuf, NodeError> {
        self.file("packed", &format!("{base_digest}-{quantization}.safetensors"))
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
            // Between this and the pin another process may have removed it for its own.
        }
    }

    async fn fill(&self, client: &Client, target: &Path, files: &[RemoteFile]) -> Result<(), NodeError> {
        self.make_room(files.iter().map(|file| file.bytes.0).sum())?;
        let filling = self.scratch()?;
        for file in files {
            tracing::info!(file.name = %file.name, file.bytes = file.bytes.0, "fetching {} ({})", file.name, file.bytes);
            fetch(client, file, filling.path()).await?;
        }
        self.put_in_place(filling, target, files)
    }

    /// Removes what was used least recently and is not in use, until `bytes` more fit into the budget.
    fn make_room(&self, bytes: u64) -> Result<(), NodeError> {
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
                // Another process may be removing it.
                let Ok(metadata) = fs::metadata(&path) else { continue };
                let used_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let bytes = if metadata.is_dir() { bytes_of(&path) } else { metadata.len() };
                entries.push(Entry { path, used_at, bytes });
            }
        }
        Ok(entries)
    }

    /// Removes an entry that no process has in use; `false`: one has.
    fn remove(&self, path: &Path) -> Result<bool, NodeError> {
        let Ok(entry) = File::open(path) else { return Ok(false) };
        if entry.try_lock().is_err() {
            return Ok(false);
        }
        // Out of sight in one step, so that nobody finds half of it.
        let aside = self.scratch()?;
        Ok(fs::rename(path, aside.path().join("old")).is_ok())
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

/// What lies in the cache under a kind and a key.
struct Entry {
    path: PathBuf,
    used_at: SystemTime,
    bytes: u64,
}

/// The folder, if it holds these files and stays.
fn pinned(path: &Path, files: &[RemoteFile]) -> Option<Folder> {
    let pin = File::open(path).ok()?;
    pin.lock_shared().ok()?;
    let (held, there) = (pin.metadata().ok()?, fs::metadata(path).ok()?);
    let is_same = (held.dev(), held.ino()) == (there.dev(), there.ino());
    (is_same && holds(path, files)).then(|| Folder { path: path.to_owned(), _pin: pin })
}

/// Notes that it is used now. A failure makes it go earlier, no more.
fn touch(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

fn bytes_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
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
