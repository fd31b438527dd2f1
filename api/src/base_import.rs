//! The checks of a Hugging Face folder in the object store before it becomes a base model: the required files, an
//! architecture that Attune supports, and every tensor of that architecture in the safetensors headers. No weights are
//! read.

mod found_tensors;

use std::collections::{BTreeMap, BTreeSet};

use attune_domain::{
    architecture::{Architecture, gguf_blocks::KeptBlocks},
    bytes::Bytes as ByteCount,
    digest::Sha256,
    id::ProjectId,
    run::Blob,
};
use attune_store::{
    adapters::base_model::{SMALL_BYTES, small_files},
    files::{
        objects::{Objects, blob_key},
        project_blob,
    },
};
use attune_text::{model::adapter_template_in, template::ChatTemplate};
use bytes::Bytes;
use tokio::task::spawn_blocking;

use self::found_tensors::FoundTensors;
use crate::{app::App, error::ApiError, wire::base_model::NewFolderFile};

/// The maximum number of concurrent checks of base models.
pub const AT_ONCE: usize = 2;

/// The maximum number of concurrent checks of one project.
pub const AT_ONCE_OF_PROJECT: usize = 1;

/// The maximum size of `config.json` and of `generation_config.json`, in bytes.
const CONFIG_BYTES: u64 = 1 << 20;

/// The maximum size of `chat_template.jinja`, in bytes.
const TEMPLATE_BYTES: u64 = 1 << 20;

/// The maximum size of `tokenizer_config.json` and of `special_tokens_map.json`, in bytes.
const TOKENIZER_CONFIG_BYTES: u64 = 4 << 20;

/// The maximum length of the header of a safetensors file, in bytes; a model of 500 tensors needs some 60,000.
const HEADER_BYTES: u64 = 4 << 20;

/// The maximum length of all headers of a folder together, in bytes.
const HEADERS_BYTES: u64 = 8 << 20;

/// The maximum number of files in a folder.
const MOST_FILES: usize = 1000;

/// Returns the maximum size of a file with this name, in bytes; weights are limited by `limits.blob_bytes` when they
/// are uploaded.
fn largest(name: &str) -> u64 {
    match name {
        "config.json" | "generation_config.json" => CONFIG_BYTES,
        "chat_template.jinja" => TEMPLATE_BYTES,
        "tokenizer_config.json" | "special_tokens_map.json" => TOKENIZER_CONFIG_BYTES,
        name if name.ends_with(".safetensors") => u64::MAX,
        _ => SMALL_BYTES.0,
    }
}

/// Checks the names, digests and sizes of the files, without the database or the object store, and returns the files.
///
/// # Errors
/// [`ApiError::Invalid`], naming the file at fault by its index in the request.
pub fn check_list(name: &str, files: &[NewFolderFile]) -> Result<Vec<Blob>, ApiError> {
    if !is_model_name(name) {
        let message = format!(
            "Invalid 'name': '{name}'. Use 1 to 96 characters of a-z, 0-9, '.', '_' and '-', beginning with a \
             letter or a digit."
        );
        return Err(ApiError::invalid("name", message));
    }
    if files.len() > MOST_FILES {
        return Err(ApiError::invalid("files", format!("A base model has at most {MOST_FILES} files.")));
    }
    let (mut names, mut blobs) = (BTreeSet::new(), Vec::with_capacity(files.len()));
    for (i, file) in files.iter().enumerate() {
        let at = |field: &str| format!("files[{i}].{field}");
        if !is_file_name(&file.name) {
            return Err(ApiError::invalid(
                at("name"),
                format!("'{}' is not a valid file name. Use 1 to 128 letters, digits, '.', '_' and '-'.", file.name),
            ));
        }
        if !names.insert(&file.name) {
            return Err(ApiError::invalid(at("name"), format!("'{}' is given twice.", file.name)));
        }
        let Ok(sha256) = file.sha256.parse() else {
            return Err(ApiError::invalid(at("sha256"), "A SHA-256 must be 64 lower-case hex digits."));
        };
        let most = largest(&file.name);
        if file.bytes > most {
            let message = format!("'{}' has {} bytes. The maximum is {most}.", file.name, file.bytes);
            return Err(ApiError::invalid(at("bytes"), message));
        }
        blobs.push(Blob { name: file.name.clone(), sha256, bytes: ByteCount(file.bytes) });
    }
    for needed in ["config.json", "tokenizer.json"] {
        if !files.iter().any(|file| file.name == needed) {
            return Err(ApiError::invalid("files", format!("There is no {needed} among the files.")));
        }
    }
    if !files.iter().any(|file| file.name.ends_with(".safetensors")) {
        return Err(ApiError::invalid("files", "There is no .safetensors among the files."));
    }
    Ok(blobs)
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

/// Checks the content of a folder whose list was checked, and protects it from the sweep until a row can name it.
///
/// # Errors
/// [`ApiError::Invalid`]: the project has not uploaded a file, or a file is invalid. [`ApiError::Busy`]: too many
/// imports are in progress. [`ApiError::Internal`]: the store fails.
pub async fn check_content(app: &App, project: ProjectId, files: &[Blob]) -> Result<Architecture, ApiError> {
    check_owned(app, project, files).await?;
    let _place = app.base_imports.take(project, "imports of base models").await?;
    let config = whole(&app.objects, files, "config.json").await?;
    let read = spawn_blocking(move || Architecture::from_config_json(&config)).await.map_err(ApiError::internal)?;
    let mut architecture = read.map_err(|e| refused(e.to_string()))?;
    architecture.gguf_blocks = check_tensors(&app.objects, files, &architecture).await?;
    check_template(&app.objects, files).await?;
    Ok(architecture)
}

/// Checks that the project has uploaded every file, with the stated size. A file that only another project uploaded is
/// reported as missing, and its size is not revealed.
async fn check_owned(app: &App, project: ProjectId, files: &[Blob]) -> Result<(), ApiError> {
    let digests: Vec<Sha256> = files.iter().map(|file| file.sha256).collect();
    let mut tx = app.tenant(project).await?;
    let nameable = project_blob::hold(&mut tx, project, &digests).await?;
    tx.commit().await?;
    for (i, file) in files.iter().enumerate() {
        let there = match nameable.get(&file.sha256) {
            Some(bytes) if app.objects.head(&blob_key(file.sha256)).await?.is_some() => Some(*bytes),
            _ => None,
        };
        match there {
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
    Ok(())
}

/// Refuses a chat template that does not compile.
async fn check_template(objects: &Objects, files: &[Blob]) -> Result<(), ApiError> {
    let found = small_files(objects, files, &["chat_template.jinja", "tokenizer_config.json"]).await?;
    let source = adapter_template_in(&|name| Ok(found.get(name).cloned()));
    let Ok(Some(source)) = source else { return Ok(()) }; // a base model needs no chat template
    let compiled = spawn_blocking(move || ChatTemplate::new(&source, BTreeMap::new()));
    compiled.await.map_err(ApiError::internal)?.map(drop).map_err(|error| refused(error.to_string()))
}

fn refused(reason: String) -> ApiError {
    ApiError::Invalid { param: Some("files".into()), code: "invalid_base_model", message: format!("{reason}.") }
}

/// Returns the content of a file whose size was checked.
async fn whole(objects: &Objects, files: &[Blob], name: &str) -> Result<Bytes, ApiError> {
    let file = files.iter().find(|f| f.name == name).ok_or_else(|| refused(format!("There is no {name}")))?;
    Ok(objects.get_whole(&blob_key(file.sha256)).await?)
}

/// Checks the tensors of all files. Returns the weights that are in blocks of a GGUF file.
async fn check_tensors(
    objects: &Objects,
    files: &[Blob],
    architecture: &Architecture,
) -> Result<Option<KeptBlocks>, ApiError> {
    let mut found = FoundTensors::new(architecture);
    let mut room = HEADERS_BYTES;
    for file in files.iter().filter(|file| file.name.ends_with(".safetensors")) {
        let header = header(objects, file, room).await?;
        room = room.saturating_sub(header.len() as u64);
        let file = file.clone();
        let work = move || {
            found.add(&file, &header)?;
            Ok::<_, String>(found)
        };
        found = spawn_blocking(work).await.map_err(ApiError::internal)?.map_err(refused)?;
    }
    spawn_blocking(move || found.finish()).await.map_err(ApiError::internal)?.map_err(refused)
}

/// Reads only the header of a safetensors file; `room` is what remains of the limit on all headers of the folder.
async fn header(objects: &Objects, file: &Blob, room: u64) -> Result<Bytes, ApiError> {
    let key = blob_key(file.sha256);
    if file.bytes.0 < 8 {
        return Err(broken(file, "it ends within its header"));
    }
    let first = objects.get_range(&key, 0..=7).await?.collect().await.map_err(ApiError::internal)?.into_bytes();
    let length = first.first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first));
    if length > file.bytes.0 - 8 {
        return Err(broken(file, "its header is longer than the file"));
    }
    if length > HEADER_BYTES {
        return Err(refused(format!("{} has a header of {length} bytes; the maximum is {HEADER_BYTES}", file.name)));
    }
    if length > room {
        let reason = format!("the headers of the .safetensors have more than {HEADERS_BYTES} bytes together");
        return Err(refused(format!("{}: {reason}", file.name)));
    }
    if length == 0 {
        return Err(broken(file, "it has no header"));
    }
    let text = objects.get_range(&key, 8..=7 + length).await?.collect().await.map_err(ApiError::internal)?;
    Ok(text.into_bytes())
}

fn broken(file: &Blob, reason: &str) -> ApiError {
    refused(format!("{} is not a whole safetensors file: {reason}", file.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, files: &[(&str, &str)]) -> Option<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(name, sha256)| NewFolderFile { name: (*name).into(), sha256: (*sha256).into(), bytes: 1 })
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

    #[test]
    fn limit_files_of_a_folder_are_few_and_those_without_weights_are_small() {
        let sha256 = "a".repeat(64);
        let refusal = |name: &str, bytes: u64| {
            let file = NewFolderFile { name: name.into(), sha256: sha256.clone(), bytes };
            check_list("m", &[file]).err().and_then(|e| e.body().error.param)
        };
        for (name, most) in [
            ("config.json", CONFIG_BYTES),
            ("generation_config.json", CONFIG_BYTES),
            ("chat_template.jinja", TEMPLATE_BYTES),
            ("tokenizer_config.json", TOKENIZER_CONFIG_BYTES),
            ("special_tokens_map.json", TOKENIZER_CONFIG_BYTES),
            ("tokenizer.json", SMALL_BYTES.0),
            ("README.md", SMALL_BYTES.0),
        ] {
            assert_eq!(refusal(name, most + 1).as_deref(), Some("files[0].bytes"), "{name}");
            assert_eq!(refusal(name, most).as_deref(), Some("files"), "{name}: other files are missing");
        }
        assert_eq!(refusal("model.safetensors", 1 << 40).as_deref(), Some("files"));
        let file = |i: usize| NewFolderFile { name: format!("{i}"), sha256: sha256.clone(), bytes: 1 };
        let many: Vec<NewFolderFile> = (0..=MOST_FILES).map(file).collect();
        assert!(check_list("m", &many).unwrap_err().to_string().contains("at most 1000 files"));
    }
}
