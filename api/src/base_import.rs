//! Checks a Hugging Face folder that lies in the object store before it becomes a base model: the right files, a shape
//! that Attune runs, and every tensor of that shape in the headers of the safetensors. No weight is read.

use std::collections::BTreeSet;

use attune_domain::{architecture::Architecture, run::Blob, weights};
use attune_store::objects::{Objects, blob_key};
use safetensors::{Dtype, tensor::Metadata};

use crate::{error::ApiError, incoming::is_sha256};

/// The longest `config.json` that is read.
const CONFIG_BYTES: u64 = 1 << 20;

/// The longest header of a safetensors file. Source: `MAX_HEADER_SIZE` of the safetensors crate.
const HEADER_BYTES: u64 = 100_000_000;

/// The most files of a folder.
const MOST_FILES: usize = 1000;

/// Checks names, digests and lengths; asks nobody.
///
/// # Errors
/// [`ApiError::Invalid`], naming the file at fault by its place in the request.
pub fn check_list(name: &str, files: &[Blob]) -> Result<(), ApiError> {
    if !is_model_name(name) {
        let message = format!(
            "Invalid 'name': '{name}'; it must start with a lower-case letter or a digit and go on with at most 95 of a-z, 0-9, '.', '_' and '-'."
        );
        return Err(ApiError::invalid("name", message));
    }
    if files.len() > MOST_FILES {
        return Err(ApiError::invalid("files", format!("A base model has at most {MOST_FILES} files.")));
    }
    let mut names = BTreeSet::new();
    for (i, file) in files.iter().enumerate() {
        let at = |field: &str| format!("files[{i}].{field}");
        if !is_file_name(&file.name) {
            return Err(ApiError::invalid(at("name"), format!("'{}' is not the plain name of a file.", file.name)));
        }
        if !names.insert(&file.name) {
            return Err(ApiError::invalid(at("name"), format!("'{}' is given twice.", file.name)));
        }
        if !is_sha256(&file.sha256) {
            return Err(ApiError::invalid(at("sha256"), "A digest is 64 lower-case hex digits."));
        }
    }
    for needed in ["config.json", "tokenizer.json"] {
        if !files.iter().any(|file| file.name == needed) {
            return Err(ApiError::invalid("files", format!("There is no {needed} among the files.")));
        }
    }
    if !files.iter().any(|file| file.name.ends_with(".safetensors")) {
        return Err(ApiError::invalid("files", "There is no .safetensors among the files."));
    }
    Ok(())
}

fn is_model_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 96
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
}

fn is_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks the content of a folder whose list is checked.
///
/// # Errors
/// [`ApiError::Invalid`]: a file is missing or is not what it must be. [`ApiError::Internal`]: the store fails.
pub async fn check_content(objects: &Objects, files: &[Blob]) -> Result<Architecture, ApiError> {
    for (i, file) in files.iter().enumerate() {
        match objects.head(&blob_key(&file.sha256)).await? {
            Some(bytes) if bytes == file.bytes => {}
            Some(bytes) => {
                let message = format!("'{}' has {} bytes in the store, not {}.", file.name, bytes.0, file.bytes.0);
                return Err(ApiError::invalid(format!("files[{i}].bytes"), message));
            }
            None => {
                let message = format!("'{}' was not uploaded: PUT /v1/base_models/blobs/{}.", file.name, file.sha256);
                return Err(ApiError::invalid(format!("files[{i}].sha256"), message));
            }
        }
    }
    let config = small(objects, files, "config.json").await?;
    let architecture = Architecture::from_config_json(&config).map_err(|e| refused(e.to_string()))?;
    check_tensors(objects, files, &architecture).await?;
    Ok(architecture)
}

fn refused(reason: String) -> ApiError {
    ApiError::Invalid { param: Some("files".into()), code: "invalid_base_model", message: format!("{reason}.") }
}

async fn small(objects: &Objects, files: &[Blob], name: &str) -> Result<Vec<u8>, ApiError> {
    let file = files.iter().find(|f| f.name == name).ok_or_else(|| refused(format!("There is no {name}")))?;
    if file.bytes.0 > CONFIG_BYTES {
        return Err(refused(format!("{name} is larger than {CONFIG_BYTES} bytes")));
    }
    Ok(objects.get_whole(&blob_key(&file.sha256)).await?.to_vec())
}

async fn check_tensors(objects: &Objects, files: &[Blob], architecture: &Architecture) -> Result<(), ApiError> {
    let mut wanted = weights::expected(architecture);
    let mut seen = BTreeSet::new();
    for file in files.iter().filter(|file| file.name.ends_with(".safetensors")) {
        let header = header(objects, file).await?;
        for (name, info) in header.tensors() {
            if !seen.insert(name.clone()) {
                return Err(refused(format!("{}: tensor '{name}' is in another file too", file.name)));
            }
            let shape: Vec<u64> = info.shape.iter().map(|&n| n as u64).collect();
            match wanted.remove(&name) {
                None if weights::is_superfluous(&name, architecture) => {}
                None => return Err(refused(format!("{}: '{name}' is no tensor of this architecture", file.name))),
                Some(want) if want != shape => {
                    return Err(refused(format!("{}: '{name}' has the shape {shape:?}, not {want:?}", file.name)));
                }
                Some(_) if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                    let kind = info.dtype;
                    return Err(refused(format!("{}: '{name}' is {kind}; F32, F16 and BF16 are read", file.name)));
                }
                Some(_) => {}
            }
        }
    }
    match wanted.keys().next() {
        Some(name) => Err(refused(format!("The tensor '{name}' is missing, and {} more", wanted.len() - 1))),
        None => Ok(()),
    }
}

/// Reads the head of a safetensors file and no more.
async fn header(objects: &Objects, file: &Blob) -> Result<Metadata, ApiError> {
    let broken = |reason: &str| refused(format!("{} is not a whole safetensors file: {reason}", file.name));
    let mut body = objects.get(&blob_key(&file.sha256)).await?;
    let mut head = Vec::new();
    let mut length = None;
    while length.is_none_or(|n: u64| (head.len() as u64) < 8 + n) {
        let Some(piece) = body.try_next().await.map_err(ApiError::internal)? else {
            return Err(broken("it ends within its header"));
        };
        head.extend_from_slice(&piece);
        if length.is_none()
            && let Some(first) = head.first_chunk::<8>()
        {
            let n = u64::from_le_bytes(*first);
            if n > HEADER_BYTES || n > file.bytes.0 {
                return Err(broken("its header would be longer than the file"));
            }
            length = Some(n);
        }
    }
    let end = 8 + usize::try_from(length.unwrap_or(0)).unwrap_or(0);
    let text = head.get(8..end).unwrap_or_default();
    let header: Metadata = serde_json::from_slice(text).map_err(|e| broken(&e.to_string()))?;
    let whole = end as u64 + header.data_len() as u64;
    if whole == file.bytes.0 {
        Ok(header)
    } else {
        Err(broken(&format!("its header speaks of {whole} bytes, but it has {}", file.bytes.0)))
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::bytes::Bytes;

    use super::*;

    fn refusal(name: &str, files: &[(&str, &str)]) -> Option<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(name, sha256)| Blob { name: (*name).into(), sha256: (*sha256).into(), bytes: Bytes(1) })
            .collect();
        check_list(name, &files).err().and_then(|e| e.body().error.param)
    }

    #[test]
    fn a_list_names_what_is_wrong_with_it() {
        let sha256 = "a".repeat(64);
        let good = [("config.json", &*sha256), ("tokenizer.json", &sha256), ("model.safetensors", &sha256)];
        assert_eq!(refusal("smollm2-135m", &good), None);
        for name in ["", "Big", "ft:x", "a/b", "-a", &"a".repeat(97)] {
            assert_eq!(refusal(name, &good).as_deref(), Some("name"), "{name}");
        }
        for file in ["../x", ".hidden", "a/b", "", "a b"] {
            assert_eq!(refusal("m", &[(file, &sha256)]).as_deref(), Some("files[0].name"), "{file}");
        }
        assert_eq!(refusal("m", &[("a", "A")]).as_deref(), Some("files[0].sha256"));
        assert_eq!(refusal("m", &[good[0], good[0]]).as_deref(), Some("files[1].name"));
        assert_eq!(refusal("m", &good[..2]).as_deref(), Some("files"));
        assert_eq!(refusal("m", &good[1..]).as_deref(), Some("files"));
    }
}
