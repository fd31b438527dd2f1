//! A dataset as `--training-file` and a job file name it: the ID of an uploaded file, or a local path.

use std::path::{Path, PathBuf};

/// Returns `named` as a local path, even if no such file exists; `None` if it is a file ID.
pub(super) fn local(named: &str) -> Option<PathBuf> {
    let is_id = named.starts_with("file-") && !Path::new(named).exists();
    (!is_id).then(|| named.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_not_taken_for_a_path() {
        assert_eq!(local("file-0190"), None);
        assert_eq!(local("rows.jsonl"), Some("rows.jsonl".into()));
    }
}
