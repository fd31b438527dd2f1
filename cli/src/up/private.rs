//! Small files with secrets in them: readable by their owner only, and never half-written.

use std::{
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

use crate::error::{Doing, Result};

/// Writes `text` to `path` with mode 0600: to a neighbour first, synced, then renamed.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: no room, no right.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // `NamedTempFile` is 0600 from its first moment.
    let written = NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    });
    written.map(drop).doing(|| format!("write {}", path.display()))
}

/// Makes a folder, and those above it, that only the owner can enter. One that is there is closed to others.
///
/// # Errors
/// [`crate::error::CliError::Failed`]: no right, or a file is in the way.
pub(crate) fn folder(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .doing(|| format!("make the folder {}", path.display()))
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
