//! The list of multipart uploads that are neither completed nor aborted, from the files that `s3s-fs` keeps for each:
//! `.upload-<id>.json`, and `.bucket-<bucket>.object-<key>.upload-<id>.metadata.json`, both names in base64.

use std::{fs, io, path::Path, time::SystemTime};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use s3s::{
    S3Error, S3Result,
    dto::{ListMultipartUploadsInput, ListMultipartUploadsOutput, MultipartUpload},
    s3_error,
};

/// The most uploads in one answer, which is also the default. Source: S3's API reference, `max-uploads`.
const MOST: i32 = 1000;

/// An upload, ordered as S3 lists them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Unfinished {
    key: String,
    id: String,
    initiated: SystemTime,
}

/// Lists uploads of a bucket, by key and then by ID.
pub(crate) fn list(root: &Path, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
    if input.delimiter.is_some() {
        return Err(s3_error!(NotImplemented, "Multipart uploads are listed without a delimiter only."));
    }
    if !root.join(&input.bucket).is_dir() {
        return Err(s3_error!(NoSuchBucket));
    }
    let mut found = of_bucket(root, &input.bucket).map_err(S3Error::internal_error)?;
    let prefix = input.prefix.as_deref().unwrap_or_default();
    // Without an ID, no upload of the marker's key is listed.
    let marked = input.upload_id_marker.clone().unwrap_or_else(|| char::MAX.into());
    let after = input.key_marker.clone().map(|key| (key, marked));
    found.retain(|one| {
        let place = (&one.key, &one.id);
        one.key.starts_with(prefix) && after.as_ref().is_none_or(|(key, id)| place > (key, id))
    });
    found.sort();
    let most = input.max_uploads.unwrap_or(MOST).clamp(0, MOST);
    let is_truncated = found.len() > most.unsigned_abs() as usize;
    found.truncate(most.unsigned_abs() as usize);
    let last = found.last().filter(|_| is_truncated);
    Ok(ListMultipartUploadsOutput {
        next_key_marker: last.map(|one| one.key.clone()),
        next_upload_id_marker: last.map(|one| one.id.clone()),
        uploads: Some(found.into_iter().map(view).collect()),
        bucket: Some(input.bucket),
        prefix: input.prefix,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        max_uploads: Some(most),
        is_truncated: Some(is_truncated),
        ..Default::default()
    })
}

fn view(one: Unfinished) -> MultipartUpload {
    MultipartUpload {
        key: Some(one.key),
        upload_id: Some(one.id),
        initiated: Some(one.initiated.into()),
        ..Default::default()
    }
}

fn of_bucket(root: &Path, bucket: &str) -> io::Result<Vec<Unfinished>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Some((of, key, id)) = entry.file_name().to_str().and_then(parse) else { continue };
        // Without this file `s3s-fs` can neither complete nor abort the upload.
        if of != bucket || !root.join(format!(".upload-{id}.json")).exists() {
            continue;
        }
        match entry.metadata().and_then(|metadata| metadata.modified()) {
            Ok(initiated) => found.push(Unfinished { key, id, initiated }),
            // It was completed or aborted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Returns the bucket, the key and the upload's ID that a file of an upload names.
fn parse(name: &str) -> Option<(String, String, String)> {
    let decoded = |text: &str| String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let names = name.strip_prefix(".bucket-")?.strip_suffix(".metadata.json")?;
    let (bucket, names) = names.split_once(".object-")?;
    let (key, id) = names.split_once(".upload-")?;
    Some((decoded(bucket)?, decoded(key)?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use s3s::{
        S3, S3Request,
        dto::{AbortMultipartUploadInput, CreateBucketInput, CreateMultipartUploadInput},
    };

    use super::*;
    use crate::Bucket;

    fn request<T>(input: T) -> S3Request<T> {
        S3Request {
            input,
            method: http::Method::GET,
            uri: http::Uri::from_static("/"),
            headers: http::HeaderMap::new(),
            extensions: http::Extensions::new(),
            credentials: None,
            region: None,
            service: None,
            trailing_headers: None,
        }
    }

    /// Returns the input of a list of the bucket `b`.
    fn input() -> ListMultipartUploadsInput {
        ListMultipartUploadsInput { bucket: "b".into(), ..Default::default() }
    }

    /// Returns the keys of a list, and the markers of the next one.
    async fn keys(bucket: &Bucket, input: ListMultipartUploadsInput) -> (Vec<String>, Option<(String, String)>) {
        let listed = bucket.list_multipart_uploads(request(input)).await.unwrap().output;
        assert_eq!(listed.is_truncated, Some(listed.next_key_marker.is_some()));
        let keys = listed.uploads.unwrap().into_iter().map(|one| one.key.unwrap()).collect();
        (keys, listed.next_key_marker.zip(listed.next_upload_id_marker))
    }

    async fn begun(bucket: &Bucket, key: &str) -> String {
        let input = CreateMultipartUploadInput { bucket: "b".into(), key: key.into(), ..Default::default() };
        bucket.create_multipart_upload(request(input)).await.unwrap().output.upload_id.unwrap()
    }

    #[tokio::test]
    async fn uploads_are_listed_by_key_page_by_page_until_they_are_aborted() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open(folder.path()).unwrap();
        assert!(bucket.list_multipart_uploads(request(input())).await.is_err(), "there is no bucket");
        let create = CreateBucketInput { bucket: "b".into(), ..Default::default() };
        bucket.create_bucket(request(create)).await.unwrap();
        assert_eq!(keys(&bucket, input()).await, (vec![], None));

        for key in ["upload/2", "upload/1", "other"] {
            begun(&bucket, key).await;
        }
        let second = begun(&bucket, "upload/1").await;
        assert_eq!(keys(&bucket, input()).await.0, ["other", "upload/1", "upload/1", "upload/2"]);
        let of_prefix = ListMultipartUploadsInput { prefix: Some("upload/2".into()), ..input() };
        assert_eq!(keys(&bucket, of_prefix).await.0, ["upload/2"]);
        let after = ListMultipartUploadsInput { key_marker: Some("upload/1".into()), ..input() };
        assert_eq!(keys(&bucket, after).await.0, ["upload/2"]);

        let mut seen = Vec::new();
        let mut page = ListMultipartUploadsInput { max_uploads: Some(1), ..input() };
        loop {
            let (keys, next) = keys(&bucket, page.clone()).await;
            seen.extend(keys);
            let Some((key, id)) = next else { break };
            (page.key_marker, page.upload_id_marker) = (Some(key), Some(id));
        }
        assert_eq!(seen, ["other", "upload/1", "upload/1", "upload/2"]);

        let abort = AbortMultipartUploadInput {
            bucket: "b".into(),
            key: "upload/1".into(),
            upload_id: second,
            ..Default::default()
        };
        bucket.abort_multipart_upload(request(abort)).await.unwrap();
        assert_eq!(keys(&bucket, input()).await.0, ["other", "upload/1", "upload/2"]);
    }
}
