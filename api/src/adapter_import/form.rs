//! The multipart form of an import, read once as a stream: every file is written to the object store under a key of its
//! own. Defects are collected instead of ending the request, so that one response lists all of them.

use attune_domain::peft::{CONFIG, OTHER_FILES, TENSORS};
use attune_store::files::{
    objects::{Objects, upload_key},
    staging::{Arrived, Incoming, Staged},
};

use crate::{
    adapter_import::tensors::{Scanned, TensorScan},
    error::ApiError,
    files::{
        file_form::{missing, twice, unknown},
        multipart::{Form, Part},
    },
};

/// The maximum size of those files and of `adapter_config.json`, in bytes.
const SMALL_BYTES: u64 = 32 << 20;

/// The files whose content is not collected for the checks.
const UNREAD: [&str; 2] = ["README.md", "tokenizer.json"];

/// The maximum length of a collected text, in bytes.
const TEXT_BYTES: usize = 4 << 20;

/// The content of the form, as far as it has been read.
#[derive(Default)]
pub struct Brought {
    /// The field `name`.
    pub name: Option<String>,
    /// The field `base_model`.
    pub base_model: Option<String>,
    /// The field `base_digest`.
    pub base_digest: Option<String>,
    /// The field `quantization`.
    pub quantization: Option<String>,
    /// The uploaded files, staged in the object store; no row refers to them yet.
    pub files: Vec<BroughtFile>,
    /// The content of the files that the checks read, by file name.
    pub texts: Vec<(String, Vec<u8>)>,
    /// The result of scanning the safetensors file, if it was uploaded.
    pub tensors: Option<Scanned>,
    /// The defects found so far, as clauses without a final period.
    pub reasons: Vec<String>,
}

/// An uploaded file, staged in the object store.
pub struct BroughtFile {
    /// The file's name in the adapter's folder.
    pub name: String,
    /// The staged object.
    pub staged: Staged,
    /// The file's digest and size.
    pub arrived: Arrived,
}

impl Brought {
    /// Returns the content of a collected text file.
    pub fn text(&self, name: &str) -> Option<&[u8]> {
        self.texts.iter().find(|(of, _)| of == name).map(|(_, text)| text.as_slice())
    }
}

/// Reads the form to its end.
///
/// # Errors
/// The form is incomplete, has no file, an unknown or a repeated field, or a file is too large or cannot be stored.
pub async fn read(objects: &Objects, largest: u64, form: &mut Form, brought: &mut Brought) -> Result<(), ApiError> {
    while let Some(field) = form.next_field().await? {
        let name = field.name().to_owned();
        let place = match name.as_str() {
            "files" => {
                file(objects, largest, field, brought).await?;
                continue;
            }
            "name" => &mut brought.name,
            "base_model" => &mut brought.base_model,
            "base_digest" => &mut brought.base_digest,
            "quantization" => &mut brought.quantization,
            other => {
                return Err(unknown(other, "'name', 'base_model', 'base_digest', 'quantization' and 'files'"));
            }
        };
        if place.is_some() {
            return Err(twice(&name));
        }
        *place = Some(field.text().await?);
    }
    if brought.files.is_empty() && brought.reasons.is_empty() { Err(missing("files")) } else { Ok(()) }
}

async fn file(objects: &Objects, largest: u64, mut field: Part<'_>, brought: &mut Brought) -> Result<(), ApiError> {
    let name = field.file_name().unwrap_or("").to_owned();
    if let Some(why) = unwanted(&name, brought) {
        brought.reasons.push(why);
        while field.chunk().await?.is_some() {}
        return Ok(());
    }
    let (key, is_tensors) = (upload_key(), name == TENSORS);
    let limit = if is_tensors { largest } else { SMALL_BYTES };
    let mut incoming = Incoming::begin(objects, &key, "file", limit);
    let is_read = !UNREAD.contains(&name.as_str());
    let (mut scan, mut text) = (TensorScan::default(), Vec::new());
    while let Some(piece) = field.chunk().await? {
        incoming.write(&piece).await?;
        if is_tensors {
            scan.push(&piece);
        } else if is_read && text.len() <= TEXT_BYTES {
            text.extend_from_slice(&piece);
        }
    }
    let (staged, arrived) = incoming.stage(objects, key).await?;
    if is_tensors {
        brought.tensors = Some(scan.finish());
    } else if is_read && text.len() <= TEXT_BYTES {
        brought.texts.push((name.clone(), text));
    } else if is_read {
        brought.reasons.push(format!("{name} is longer than {TEXT_BYTES} bytes"));
    }
    brought.files.push(BroughtFile { name, staged, arrived });
    Ok(())
}

/// Returns the reason for rejecting a file by its name, if there is one.
fn unwanted(name: &str, brought: &Brought) -> Option<String> {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    if ![CONFIG, TENSORS].contains(&name) && !OTHER_FILES.contains(&name) {
        let others = OTHER_FILES.join(", ");
        return Some(format!("'{shown}' is not a file of an adapter. Allowed: {CONFIG}, {TENSORS}, {others}"));
    }
    brought.files.iter().any(|file| file.name == name).then(|| format!("'{shown}' is given twice"))
}
