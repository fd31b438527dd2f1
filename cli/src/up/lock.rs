//! The lock that allows one `attune up` per folder; the kernel releases it however the process ends.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use crate::error::{CliError, Doing, Result};

/// A held lock, released on drop.
pub(crate) struct FolderLock(#[expect(dead_code, reason = "it is kept for its lock")] File);

/// Takes the lock of `folder`. The process ID in the file is only for the error message of a second process.
///
/// # Errors
/// [`CliError::AlreadyRunning`]; [`CliError::Failed`] if the file cannot be created.
pub(crate) fn take(folder: &Path) -> Result<FolderLock> {
    let path = folder.join("attune.lock");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.doing(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let by = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!(" (process {})", holder.trim()),
                _ => String::new(),
            };
            return Err(CliError::AlreadyRunning { folder: folder.display().to_string(), by });
        }
        Err(TryLockError::Error(e)) => return Err(e).doing(|| format!("lock {}", path.display())),
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.doing(|| format!("write {}", path.display()))?;
    Ok(FolderLock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path()).unwrap();
        let Err(refused) = take(folder.path()) else { panic!("the lock was taken twice") };
        assert!(refused.to_string().contains(&format!("(process {})", std::process::id())), "{refused}");
        assert_eq!(refused.exit_code(), 8);
        drop(first);
        assert!(take(folder.path()).is_ok());
    }
}
