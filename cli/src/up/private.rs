//! Files with secrets: readable by their owner only, and written atomically.

use std::{
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

use crate::error::{Doing, Result};

/// Writes `text` to `path` with mode 0600: to a temporary file next to it, which is synced and then renamed.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: the disk is full, or a permission is missing.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // `NamedTempFile` creates the file with mode 0600.
    let written = NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    });
    written.map(drop).doing(|| format!("write {}", path.display()))
}

/// Creates a folder and its parents with mode 0700; an existing folder is changed to mode 0700.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: a permission is missing, or the path is a file.
pub(crate) fn folder(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .doing(|| format!("create the folder {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
