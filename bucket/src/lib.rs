//! The embedded object store: an S3 service over a folder, for `attune up` and for tests. It is `s3s-fs`, and the list
//! of multipart uploads, which `s3s-fs` lacks.

mod delegated;
mod unfinished;

use std::{
    io,
    path::{Path, PathBuf},
};

use s3s_fs::FileSystem;

/// The S3 operations on a folder, whose subfolders are the buckets.
#[derive(Debug)]
pub struct Bucket {
    files: FileSystem,
    root: PathBuf,
}

impl Bucket {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// The folder does not exist or cannot be read.
    pub fn open(root: &Path) -> io::Result<Self> {
        let files = FileSystem::new(root).map_err(|why| io::Error::other(format!("{why:?}")))?;
        Ok(Self { files, root: root.to_owned() })
    }
}
