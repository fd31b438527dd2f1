//! The manifest that makes a checkpoint folder atomic: the digests of its files, written last. A folder without a
//! manifest, or one that does not match it, is incomplete and is not used.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use attune_domain::digest::Sha256;
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::error::TrainerError;

const FILE: &str = "manifest.json";

/// The content of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// The files by name.
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    sha256: Sha256,
    bytes: u64,
}

/// Syncs every file of `folder` to disk, then writes and syncs the manifest.
///
/// # Errors
/// [`TrainerError::Node`]: a disk error.
pub fn seal(folder: &Path) -> Result<(), TrainerError> {
    let mut files = BTreeMap::new();
    for name in names(folder)? {
        let path = folder.join(&name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(TrainerError::io(&path))?;
        files.insert(name, entry(&path)?);
    }
    let path = folder.join(FILE);
    let text = serde_json::to_vec_pretty(&Manifest { files }).map_err(|e| TrainerError::Internal(e.to_string()))?;
    let written = File::create(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
    written.map_err(TrainerError::io(&path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(TrainerError::io(folder))
}

/// Checks every file of `folder` against the manifest.
///
/// # Errors
/// [`TrainerError::Checkpoint`], naming the file: the manifest is missing or damaged, or a file is missing, differs, or
/// is not in the manifest. [`TrainerError::Node`]: a disk error.
pub fn check(folder: &Path) -> Result<(), TrainerError> {
    let torn = |why: String| Err(TrainerError::Checkpoint(why));
    let path = folder.join(FILE);
    if !path.is_file() {
        return torn(format!("{FILE} is missing: the checkpoint was not written completely"));
    }
    let text = fs::read(&path).map_err(TrainerError::io(&path))?;
    let mut manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(why) => return torn(format!("{FILE}: {why}")),
    };
    for name in names(folder)?.into_iter().filter(|name| name != FILE) {
        let Some(want) = manifest.files.remove(&name) else { return torn(format!("{name} is not in {FILE}")) };
        let got = entry(&folder.join(&name))?;
        if got != want {
            let (got, want) = (format!("{} bytes, SHA-256 {}", got.bytes, got.sha256), want);
            return torn(format!("{name} is {got}, and {FILE} says {} bytes, SHA-256 {}", want.bytes, want.sha256));
        }
    }
    match manifest.files.into_keys().next() {
        Some(missing) => torn(format!("{missing} is missing")),
        None => Ok(()),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, TrainerError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(TrainerError::io(folder))? {
        let entry = entry.map_err(TrainerError::io(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn entry(path: &Path) -> Result<Entry, TrainerError> {
    let mut file = File::open(path).map_err(TrainerError::io(path))?;
    let (mut hash, mut bytes, mut part) = (sha2::Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut part).map_err(TrainerError::io(path))?;
        if count == 0 {
            break;
        }
        hash.update(&part[..count]);
        bytes += count as u64;
    }
    Ok(Entry { sha256: Sha256::from_digest(hash.finalize().into()), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "first").unwrap();
        fs::write(folder.path().join("b"), "second").unwrap();
        seal(folder.path()).unwrap();
        folder
    }

    fn why(folder: &Path) -> String {
        check(folder).unwrap_err().to_string()
    }

    #[test]
    fn what_was_sealed_is_whole() {
        check(sealed().path()).unwrap();
    }

    #[test]
    fn whatever_tears_a_folder_is_reported_with_the_file() {
        let folder = sealed();
        fs::write(folder.path().join("b"), "secund").unwrap();
        assert!(why(folder.path()).contains("b is 6 bytes"), "{}", why(folder.path()));
        let folder = sealed();
        fs::write(folder.path().join("b"), "secon").unwrap();
        assert!(why(folder.path()).contains("b is 5 bytes"));
        let folder = sealed();
        fs::remove_file(folder.path().join("a")).unwrap();
        assert!(why(folder.path()).contains("a is missing"));
        let folder = sealed();
        fs::write(folder.path().join("c"), "third").unwrap();
        assert!(why(folder.path()).contains("c is not in manifest.json"));
        let folder = sealed();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(why(folder.path()).contains("manifest.json is missing"));
        let folder = sealed();
        let whole = fs::read(folder.path().join(FILE)).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(folder.path().join(FILE), &whole[..cut]).unwrap();
            assert!(why(folder.path()).contains("manifest.json"), "cut at {cut}");
        }
    }
}
