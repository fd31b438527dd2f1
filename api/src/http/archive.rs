//! An adapter version as a tar archive, streamed: a header, a file's bytes from the object store, the padding, then the
//! next file. Memory: one chunk. The length is known before the first byte is sent, and a failure later on closes the
//! connection before that length, so that no client takes a truncated archive for a complete one.

use std::io;

use attune_domain::manifest;
use attune_store::{
    adapters::adapter::AdapterVersion,
    files::objects::{Objects, blob_key},
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::{error::ApiError, http::download};

/// The block size of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// The source of an entry's bytes.
enum Source {
    /// The object under this key.
    Object(String),
    /// This text.
    Text(String),
}

/// A file of the archive.
struct Entry {
    header: Bytes,
    bytes: u64,
    source: Source,
}

/// Returns the version's folder, including the manifest, as an archive.
///
/// # Errors
/// [`ApiError::Internal`]: a name that a tar archive cannot hold.
pub fn answer(objects: &Objects, version: AdapterVersion) -> Result<Response, ApiError> {
    let folder = format!("{}-{}", version.adapter, version.version);
    let moment = u64::try_from(version.created_at.timestamp()).unwrap_or(0);
    let files = version.files.into_iter().map(|file| (file.name, file.bytes.0, Source::Object(blob_key(file.sha256))));
    let manifest = version.manifest.map(|text| (manifest::FILE.to_owned(), text.len() as u64, Source::Text(text)));
    let mut entries = Vec::new();
    for (name, bytes, source) in files.chain(manifest) {
        let header = header(&format!("{folder}/{name}"), bytes, moment).map_err(ApiError::internal)?;
        entries.push(Entry { header, bytes, source });
    }
    let whole: u64 = entries.iter().map(|entry| BLOCK + entry.bytes.next_multiple_of(BLOCK)).sum();
    let body = Body::from_stream(pieces(objects.clone(), entries));
    download::saved_as(body, "application/x-tar", &format!("{folder}.tar"), whole + 2 * BLOCK)
}

fn header(path: &str, bytes: u64, moment: u64) -> io::Result<Bytes> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_mtime(moment);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

/// Streams the whole archive, which ends with two empty blocks.
fn pieces(objects: Objects, entries: Vec<Entry>) -> impl Stream<Item = io::Result<Bytes>> {
    let zeros = |count: u64| Bytes::from(vec![0; usize::try_from(count).unwrap_or(0)]);
    let each = stream::iter(entries).then(move |entry| {
        let objects = objects.clone();
        async move {
            let padding = zeros(entry.bytes.next_multiple_of(BLOCK) - entry.bytes);
            let content = match entry.source {
                Source::Text(text) => stream::iter([Ok(Bytes::from(text))]).boxed(),
                Source::Object(key) => object(&objects, &key).await?.boxed(),
            };
            let ends = |piece: Bytes| stream::iter([Ok::<_, io::Error>(piece)]);
            Ok::<_, io::Error>(ends(entry.header).chain(content).chain(ends(padding)))
        }
    });
    each.try_flatten().chain(stream::iter([Ok(zeros(2 * BLOCK))]))
}

async fn object(objects: &Objects, key: &str) -> io::Result<impl Stream<Item = io::Result<Bytes>> + use<>> {
    let object = objects.get(key).await.map_err(io::Error::other)?;
    Ok(stream::try_unfold(object, |mut object| async move {
        Ok(object.try_next().await.map_err(io::Error::other)?.map(|piece| (piece, object)))
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn what_is_packed_is_unpacked_again() {
        let objects = attune_store::testing::unreachable_objects();
        let entry = |name: &str, text: &str| Entry {
            header: header(name, text.len() as u64, 7).unwrap(),
            bytes: text.len() as u64,
            source: Source::Text(text.into()),
        };
        let long = "x".repeat(512);
        let entries = vec![entry("house-1/a", "first"), entry("house-1/b", &long), entry("house-1/c", "")];
        let whole: Vec<Bytes> = pieces(objects, entries).try_collect().await.unwrap();
        let whole = whole.concat();
        assert_eq!(whole.len() as u64, 3 * BLOCK + 2 * BLOCK + 2 * BLOCK);
        let mut found = Vec::new();
        for entry in tar::Archive::new(whole.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().to_str().unwrap().to_owned(), text));
        }
        assert_eq!(found[0], ("house-1/a".into(), "first".into()));
        assert_eq!(found[1], ("house-1/b".into(), long));
        assert_eq!(found[2], ("house-1/c".into(), String::new()));
    }
}
