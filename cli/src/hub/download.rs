//! The download of a model's files into a folder. An incomplete file is `NAME.part`; it is resumed from its first
//! missing byte, also by a later import, and renamed once its digest matches.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    path::Path,
};

use attune_domain::{digest::hex, hub_origin::is_commit, license::of_names};
use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::{StatusCode, header::CONTENT_RANGE};
use sha1::{Digest, Sha1};
use tokio::io::AsyncWriteExt;

use crate::{
    error::{CliError, Doing, Result},
    files::digest,
    hub::{
        address::HubModel,
        client::{Answer, Attempted, Description, Hub, HubError},
        files::{self, HubFile},
    },
    output,
};

/// A model whose revision is resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The model.
    pub(crate) model: HubModel,
    /// The commit.
    pub(crate) commit: String,
    description: Description,
}

impl Resolved {
    /// Returns the licence that the model card names: a text, or the first one of a list; `None`: unknown.
    pub(crate) fn license(&self) -> Option<String> {
        let card = &self.description.card;
        let named = card["license"].as_str().or_else(|| card["license"][0].as_str())?;
        of_names(named, card["license_name"].as_str())
    }
}

/// The expected digest of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// The SHA-256 of the content.
    Sha256(String),
    /// The SHA-1 of the content as a Git blob.
    GitBlob(String),
}

/// Resolves the revision of a model.
///
/// # Errors
/// As [`Hub::describe`].
pub(crate) async fn resolve(hub: &Hub, model: HubModel) -> Result<Resolved> {
    let description = hub.describe(&model).await?;
    let commit = description.sha.clone();
    if !is_commit(&commit) {
        return Err(hub.wrong("a commit that is not 40 hex digits").into());
    }
    Ok(Resolved { model, commit, description })
}

/// Downloads the files of a model that an import needs.
///
/// # Errors
/// [`CliError::Failed`]: the repository is no model, the hub fails, a digest does not match, or the disk is full.
pub(crate) async fn all(hub: &Hub, resolved: &Resolved, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).doing(|| format!("create the folder {}", folder.display()))?;
    let siblings = &resolved.description.siblings;
    let small = files::small(siblings)?;
    fetch(hub, resolved, &small, folder).await?;
    fetch(hub, resolved, &files::weights(siblings, folder)?, folder).await
}

async fn fetch(hub: &Hub, resolved: &Resolved, files: &[HubFile], folder: &Path) -> Result<()> {
    let bar = output::byte_bar("downloading", files.iter().map(|file| file.bytes).sum());
    for file in files {
        let part = folder.join(format!("{}.part", file.name));
        let download = Download { hub, resolved, file, part: &part, bar: &bar };
        download.run(&folder.join(&file.name)).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// The download of one file.
struct Download<'a> {
    hub: &'a Hub,
    resolved: &'a Resolved,
    file: &'a HubFile,
    part: &'a Path,
    bar: &'a ProgressBar,
}

impl Download<'_> {
    async fn run(&self, to: &Path) -> Result<()> {
        let HubFile { name, bytes, sha256 } = self.file;
        if let Some(sha256) = sha256
            && fs::metadata(to).is_ok_and(|there| there.len() == *bytes)
            && digest::of_file(to, |_| {})?.to_string() == *sha256
        {
            self.bar.inc(*bytes);
            return Ok(());
        }
        let (before, patience) = (self.bar.position(), self.hub.patience);
        let mut tries = 0;
        let expected = loop {
            let there = self.there()?;
            self.bar.set_position(before + there);
            match self.attempt(there).await {
                Ok(expected) => break expected,
                Err(HubError::Final(error)) => return Err(error),
                Err(HubError::Passing(why)) => {
                    // A download that advances is not counted.
                    tries = if self.there()? > there { 1 } else { tries + 1 };
                    if tries >= patience.tries {
                        return Err(CliError::Failed(why));
                    }
                }
            }
            tokio::time::sleep(patience.pause).await;
        };
        self.verify(&expected)?;
        fs::rename(self.part, to).doing(|| format!("rename the download to {name}"))
    }

    /// Returns the number of bytes that can be resumed from. Content without a SHA-256 is small and begins again.
    fn there(&self) -> Result<u64> {
        let there = fs::metadata(self.part).map_or(0, |metadata| metadata.len());
        if there <= self.file.bytes && self.file.sha256.is_some() {
            return Ok(there);
        }
        let removed = match fs::remove_file(self.part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(0),
        };
        removed.doing(|| format!("remove {}", self.part.display()))
    }

    /// Downloads the missing bytes, and returns the digest that the whole file must have.
    async fn attempt(&self, there: u64) -> Attempted<Expected> {
        if let (Some(sha256), true) = (&self.file.sha256, there == self.file.bytes && there > 0) {
            return Ok(Expected::Sha256(sha256.clone()));
        }
        let (hub, name) = (self.hub, &self.file.name);
        let answer = hub.file(&self.resolved.model, &self.resolved.commit, name, there).await?;
        let expected = self.expected(&answer)?;
        let resumes = answer.response.status() == StatusCode::PARTIAL_CONTENT;
        if resumes {
            let range = answer.response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&format!("bytes {there}-"))) {
                return Err(hub.wrong(&format!("another part of {name} than was requested")));
            }
        }
        let from = if resumes { there } else { 0 };
        self.write(answer, from).await.map(|()| expected)
    }

    /// Checks the hub's statements about the file, and returns the expected digest.
    fn expected(&self, answer: &Answer) -> Attempted<Expected> {
        let (HubFile { name, bytes, sha256 }, facts) = (self.file, &answer.facts);
        if facts.commit.as_ref().is_some_and(|commit| *commit != self.resolved.commit) {
            return Err(self.hub.wrong(&format!("{name} of another commit")));
        }
        if facts.bytes.is_some_and(|stated| stated != *bytes) {
            return Err(self.hub.wrong(&format!("{name} with another size than the {bytes} bytes that it stated")));
        }
        let is_hex = |tag: &&String| tag.bytes().all(|b| b.is_ascii_hexdigit());
        let etag = facts.etag.as_ref().filter(is_hex);
        match (sha256, etag) {
            (Some(sha256), Some(etag)) if etag.len() == 64 && etag != sha256 => {
                Err(self.hub.wrong(&format!("{name} with another digest than it stated")))
            }
            (Some(sha256), _) => Ok(Expected::Sha256(sha256.clone())),
            (None, Some(etag)) if etag.len() == 64 => Ok(Expected::Sha256(etag.clone())),
            (None, Some(etag)) if etag.len() == 40 => Ok(Expected::GitBlob(etag.clone())),
            _ => Err(self.hub.wrong(&format!("{name} without a digest"))),
        }
    }

    /// Writes a response to the partial file, from its byte `from` on.
    async fn write(&self, answer: Answer, from: u64) -> Attempted<()> {
        let HubFile { name, bytes, .. } = self.file;
        let failed =
            |e: std::io::Error| HubError::Final(CliError::Failed(format!("cannot write {}: {e}", self.part.display())));
        let mut options = OpenOptions::new();
        options.create(true).write(true).append(from > 0).truncate(from == 0);
        let mut out = tokio::fs::File::from_std(options.open(self.part).map_err(failed)?);
        let (mut written, mut stream) = (from, answer.response.bytes_stream());
        let streamed = loop {
            let chunk = match stream.next().await {
                None => break Ok(()),
                Some(Err(error)) => break Err(self.hub.unreachable(error)),
                Some(Ok(chunk)) => chunk,
            };
            written += chunk.len() as u64;
            if written > *bytes {
                break Err(self.hub.wrong(&format!("more than the {bytes} bytes of {name} that it stated")));
            }
            out.write_all(&chunk).await.map_err(failed)?;
            self.bar.inc(chunk.len() as u64);
        };
        out.sync_all().await.map_err(failed)?;
        streamed?;
        if written < *bytes {
            let host = self.hub.host();
            return Err(HubError::Passing(format!(
                "{host} sent {written} of the {bytes} bytes of {name}. Repeat the import to resume it."
            )));
        }
        Ok(())
    }

    /// Checks the digest of the whole file; removes it if that does not match.
    fn verify(&self, expected: &Expected) -> Result<()> {
        let (found, wanted) = match expected {
            Expected::Sha256(wanted) => (digest::of_file(self.part, |_| {})?.to_string(), wanted),
            Expected::GitBlob(wanted) => (git_blob(self.part)?, wanted),
        };
        if found == *wanted {
            return Ok(());
        }
        fs::remove_file(self.part).doing(|| format!("remove {}", self.part.display()))?;
        let name = &self.file.name;
        Err(CliError::Failed(format!(
            "{name} has the digest {found}, expected {wanted}. It was removed; import again."
        )))
    }
}

/// Returns the SHA-1 of a file as a Git blob: of `blob LENGTH`, a zero byte and the content. Source: Pro Git, 10.2,
/// "Git Internals - Git Objects".
fn git_blob(path: &Path) -> Result<String> {
    let reading = || format!("read {}", path.display());
    let mut file = File::open(path).doing(reading)?;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", file.metadata().doing(reading)?.len()));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).doing(reading)?;
        if count == 0 {
            return Ok(hex(hasher.finalize().as_slice()));
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_blob_has_the_digest_that_git_prints() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "test content\n").unwrap();
        assert_eq!(git_blob(file.path()).unwrap(), "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
        fs::write(file.path(), vec![0; (2 << 20) + 1]).unwrap(); // longer than a read
        assert_eq!(git_blob(file.path()).unwrap(), "1daae29441086349ea134cdefc8739c366818de9");
    }
}
