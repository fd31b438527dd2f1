//! A small disk for the objects, which can be filled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

/// The size, as `mount` reads it.
const SIZE: &str = "size=256m";

/// A mounted tmpfs, unmounted on drop.
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts a tmpfs on an empty folder; `None`: only root can.
    pub(crate) fn mount(folder: &Path) -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "attune-faults"]).arg(folder).output()?;
        ensure!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        Ok(Some(Self { folder: folder.to_owned() }))
    }

    /// Fills the disk; returns the file that [`Disk::free`] removes.
    pub(crate) fn fill(&self) -> Result<PathBuf> {
        let path = self.folder.join("filler");
        // `dd` ends with an error when the disk is full.
        let filled =
            Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", path.display())).output()?;
        ensure!(!filled.status.success(), "the disk was not filled");
        Ok(path)
    }

    /// Frees the disk again.
    pub(crate) fn free(filler: &Path) -> Result<()> {
        Ok(fs::remove_file(filler)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
