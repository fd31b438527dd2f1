//! The files of a repository that an import needs, and their bounds.

use std::{collections::HashMap, fs, path::Path};

use serde::Deserialize;

use crate::{
    error::{CliError, Doing, Result},
    hub::client::Sibling,
};

/// The maximum number of files.
const MOST_FILES: usize = 1000;

/// The maximum size of a file that holds no weights, in bytes: the platform's own limit.
const SMALL_BYTES: u64 = 32 << 20;

/// The maximum size of all files, in bytes.
const TOTAL_BYTES: u64 = 1 << 40;

/// The list of a model's shards.
const INDEX: &str = "model.safetensors.index.json";

/// The file of a model without shards.
const WHOLE: &str = "model.safetensors";

/// Files without weights.
const SMALL: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    INDEX,
];

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    /// The name.
    pub(crate) name: String,
    /// The size in bytes.
    pub(crate) bytes: u64,
    /// The SHA-256, if the content is stored outside of Git.
    pub(crate) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Returns the files without weights.
///
/// # Errors
/// [`CliError::Failed`]: a file is missing or too large.
pub(crate) fn small(siblings: &[Sibling]) -> Result<Vec<HubFile>> {
    for needed in ["config.json", "tokenizer.json"] {
        if !siblings.iter().any(|file| file.rfilename == needed) {
            return Err(CliError::Failed(format!("the repository has no {needed}")));
        }
    }
    let files = siblings.iter().filter(|file| SMALL.contains(&file.rfilename.as_str())).map(HubFile::new);
    let files = files.collect::<Result<Vec<_>>>()?;
    match files.iter().find(|file| file.bytes > SMALL_BYTES) {
        Some(HubFile { name, bytes, .. }) => {
            Err(CliError::Failed(format!("{name} has {bytes} bytes. The maximum is {SMALL_BYTES}.")))
        }
        None => Ok(files),
    }
}

/// Returns the files with the weights: the single one, or those that the downloaded index lists, or all of the
/// repository's top folder.
///
/// # Errors
/// [`CliError::Failed`]: there is none, one that the index lists is missing, or they exceed a limit.
pub(crate) fn weights(siblings: &[Sibling], folder: &Path) -> Result<Vec<HubFile>> {
    let is_weights =
        |name: &str| name.ends_with(".safetensors") && !name.contains(['/', '\\']) && !name.starts_with('.');
    let mut names: Vec<String> = siblings.iter().map(|file| file.rfilename.clone()).filter(|n| is_weights(n)).collect();
    if names.iter().any(|name| name == WHOLE) {
        names = vec![WHOLE.into()];
    } else if siblings.iter().any(|file| file.rfilename == INDEX) {
        let text = fs::read(folder.join(INDEX)).doing(|| format!("read {INDEX}"))?;
        let index: Index = serde_json::from_slice(&text).doing(|| format!("read {INDEX}"))?;
        names = index.weight_map.into_values().collect();
        names.sort_unstable();
        names.dedup();
    }
    if names.is_empty() {
        return Err(CliError::Failed("the repository has no .safetensors files".into()));
    }
    if names.len() > MOST_FILES {
        let message = format!("the model has {} files with weights. The maximum is {MOST_FILES}.", names.len());
        return Err(CliError::Failed(message));
    }
    let file = |name: &String| {
        let found = siblings.iter().find(|file| file.rfilename == *name).filter(|_| is_weights(name));
        let found = found.ok_or_else(|| CliError::Failed(format!("the repository has no {name}, which {INDEX} lists")));
        found.and_then(HubFile::new)
    };
    let files = names.iter().map(file).collect::<Result<Vec<_>>>()?;
    let total = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
    if total > TOTAL_BYTES {
        return Err(CliError::Failed(format!("the weights have {total} bytes. The maximum is {TOTAL_BYTES}.")));
    }
    Ok(files)
}

impl HubFile {
    fn new(file: &Sibling) -> Result<Self> {
        let name = file.rfilename.clone();
        let bytes = file.size.ok_or_else(|| CliError::Failed(format!("the hub states no size of {name}")))?;
        Ok(Self { name, bytes, sha256: file.lfs.as_ref().map(|lfs| lfs.sha256.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: u64) -> Sibling {
        Sibling { rfilename: name.into(), size: Some(size), lfs: None }
    }

    fn names(files: Result<Vec<HubFile>>) -> Vec<String> {
        files.unwrap().into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn only_the_files_of_an_import_are_downloaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = vec![file("config.json", 1), file("tokenizer.json", 1), file("pytorch_model.bin", 9)];
        all.extend([file("README.md", 1), file("onnx/model.safetensors", 9), file("a.safetensors", 9)]);
        assert_eq!(names(small(&all)), ["config.json", "tokenizer.json"]);
        assert_eq!(names(weights(&all, folder.path())), ["a.safetensors"]);
        all.push(file(INDEX, 1));
        fs::write(folder.path().join(INDEX), r#"{"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}"#)
            .unwrap();
        assert!(weights(&all, folder.path()).unwrap_err().to_string().contains("no b.safetensors, which"));
        all.push(file("b.safetensors", 9));
        assert_eq!(names(weights(&all, folder.path())), ["b.safetensors"]);
        for outside in ["../b.safetensors", "README.md"] {
            fs::write(folder.path().join(INDEX), format!(r#"{{"weight_map": {{"x": "{outside}"}}}}"#)).unwrap();
            assert!(weights(&all, folder.path()).is_err(), "{outside}");
        }
        all.push(file(WHOLE, 9));
        assert_eq!(names(weights(&all, folder.path())), [WHOLE]);
        assert!(small(&all[1..]).unwrap_err().to_string().contains("no config.json"));
    }

    #[test]
    fn limit_the_files_of_a_repository_are_few_and_their_sizes_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let pair = |size| [file("config.json", size), file("tokenizer.json", 1)];
        assert!(small(&pair(SMALL_BYTES)).is_ok());
        assert!(small(&pair(SMALL_BYTES + 1)).is_err());
        let shards = |count: usize| (0..count).map(|i| file(&format!("{i}.safetensors"), 1)).collect::<Vec<_>>();
        assert_eq!(weights(&shards(MOST_FILES), folder.path()).unwrap().len(), MOST_FILES);
        assert!(weights(&shards(MOST_FILES + 1), folder.path()).is_err());
        assert!(weights(&[file(WHOLE, TOTAL_BYTES)], folder.path()).is_ok());
        assert!(weights(&[file(WHOLE, TOTAL_BYTES + 1)], folder.path()).is_err());
        let unknown = Sibling { size: None, ..file(WHOLE, 0) };
        assert!(weights(&[unknown], folder.path()).unwrap_err().to_string().contains("no size"));
    }
}
