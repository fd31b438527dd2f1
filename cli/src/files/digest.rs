//! The SHA-256 of files.

use std::{fs::File, io::Read, path::Path};

use attune_domain::digest::Sha256;
use sha2::Digest;

use crate::error::{Doing, Result};

/// An incremental SHA-256.
#[derive(Default)]
pub(crate) struct Running(sha2::Sha256);

impl Running {
    /// Adds the next bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes.
    pub(crate) fn finish(self) -> Sha256 {
        Sha256::from_digest(self.0.finalize().into())
    }
}

/// Computes the SHA-256 of a file; calls `read` with the number of bytes of each read.
///
/// # Errors
/// [`crate::error::CliError::Failed`] if the file cannot be read.
pub(crate) fn of_file(path: &Path, mut read: impl FnMut(u64)) -> Result<Sha256> {
    let mut file = File::open(path).doing(|| format!("read {}", path.display()))?;
    let mut running = Running::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).doing(|| format!("read {}", path.display()))?;
        if count == 0 {
            return Ok(running.finish());
        }
        running.add(&buffer[..count]);
        read(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_abc_is_the_standards() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let digest = of_file(file.path(), |_| {}).unwrap();
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
