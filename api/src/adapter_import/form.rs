//! The form of an import, read once from its beginning to its end: every file goes into the store under a key of its own,
//! and what is wrong with it is noted, not answered, so that all that is wrong is told at once.

use attune_domain::{
    manifest,
    peft::{CONFIG, TENSORS},
};
use attune_store::files::objects::{Objects, upload_key};
use axum::extract::multipart::Field;

use crate::{
    adapter_import::tensors::{Scanned, TensorScan},
    error::ApiError,
    files::{
        file_form::{missing, twice, unknown},
        multipart::{Form, text, unread},
        staging::{Arrived, Incoming, Staged},
    },
};

/// What else may lie in an adapter's folder: what travels with it and changes no factor.
const BESIDE: [&str; 7] = [
    "README.md",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    manifest::FILE,
];

/// The largest of those, and of `adapter_config.json`.
const SMALL_BYTES: u64 = 32 << 20;

/// Those that are not looked at as texts.
const UNREAD: [&str; 2] = ["README.md", "tokenizer.json"];

/// The longest text that is kept to be looked at.
const TEXT_BYTES: usize = 4 << 20;

/// What the form said.
#[derive(Default)]
pub struct Brought {
    /// `name`.
    pub name: Option<String>,
    /// `base_model`.
    pub base_model: Option<String>,
    /// `base_digest`.
    pub base_digest: Option<String>,
    /// `quantization`.
    pub quantization: Option<String>,
    /// The files, in sight of nobody.
    pub files: Vec<BroughtFile>,
    /// The content of those that are looked at.
    pub texts: Vec<(String, Vec<u8>)>,
    /// What came past of the tensors.
    pub tensors: Option<Scanned>,
    /// What is wrong so far: sentences without their full stops.
    pub reasons: Vec<String>,
}

/// A file in the store.
pub struct BroughtFile {
    /// Its name in the folder.
    pub name: String,
    /// The object.
    pub staged: Staged,
    /// What it is.
    pub arrived: Arrived,
}

impl Brought {
    /// The content of a small file.
    pub fn text(&self, name: &str) -> Option<&[u8]> {
        self.texts.iter().find(|(of, _)| of == name).map(|(_, text)| text.as_slice())
    }
}

/// Reads the form to its end.
///
/// # Errors
/// The form is not whole, has a field that is unknown, or a file is too large.
pub async fn read(objects: &Objects, largest: u64, form: &mut Form, brought: &mut Brought) -> Result<(), ApiError> {
    while let Some(field) = form.next_field().await? {
        let name = field.name().unwrap_or("").to_owned();
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
        *place = Some(text(field).await?);
    }
    if brought.files.is_empty() && brought.reasons.is_empty() { Err(missing("files")) } else { Ok(()) }
}

async fn file(objects: &Objects, largest: u64, mut field: Field<'_>, brought: &mut Brought) -> Result<(), ApiError> {
    let name = field.file_name().unwrap_or("").to_owned();
    if let Some(why) = unwanted(&name, brought) {
        brought.reasons.push(why);
        while field.chunk().await.map_err(unread)?.is_some() {}
        return Ok(());
    }
    let (key, is_tensors) = (upload_key(), name == TENSORS);
    let limit = if is_tensors { largest } else { SMALL_BYTES };
    let mut incoming = Incoming::begin(objects, &key, "file", limit);
    let is_read = !UNREAD.contains(&name.as_str());
    let (mut scan, mut text) = (TensorScan::default(), Vec::new());
    while let Some(piece) = field.chunk().await.map_err(unread)? {
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

/// Why a file is not taken at all.
fn unwanted(name: &str, brought: &Brought) -> Option<String> {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    if ![CONFIG, TENSORS].contains(&name) && !BESIDE.contains(&name) {
        let beside = BESIDE.join(", ");
        return Some(format!("'{shown}' is no file of an adapter; taken are {CONFIG}, {TENSORS}, {beside}"));
    }
    brought.files.iter().any(|file| file.name == name).then(|| format!("'{shown}' is given twice"))
}
