//! The origin of a base model's files in a model hub, as the user who imported it states.

use serde::{Deserialize, Serialize};

use crate::bad_field::BadField;

/// The maximum length of each text, in bytes.
const TEXT_BYTES: usize = 255;

/// The repository of a hub from which files were downloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubOrigin {
    /// The hub's host, with its port if that is not the scheme's: `huggingface.co`.
    pub host: String,
    /// The repository: `OWNER/NAME`.
    pub repository: String,
    /// The branch, tag or commit that the user named.
    pub revision: String,
    /// The commit that the revision was resolved to.
    pub commit: String,
}

impl HubOrigin {
    /// Checks the fields. No checked text needs to be escaped in Markdown or YAML.
    ///
    /// # Errors
    /// [`BadField`]: the first field that is not allowed.
    pub fn check(&self) -> Result<(), BadField> {
        let wrong = |param, given: &str, allowed: &str| {
            Err(BadField { param, given: given.chars().take(TEXT_BYTES).collect(), allowed: allowed.into() })
        };
        if !is_host(&self.host) {
            return wrong("origin.host", &self.host, "a host name, with an optional port");
        }
        if !is_repository(&self.repository) {
            return wrong("origin.repository", &self.repository, "OWNER/NAME");
        }
        if !is_revision(&self.revision) {
            return wrong("origin.revision", &self.revision, "a branch, a tag or a commit");
        }
        if !is_commit(&self.commit) {
            return wrong("origin.commit", &self.commit, "40 lower-case hex digits");
        }
        Ok(())
    }
}

fn is_plain(text: &str, more: &[u8]) -> bool {
    (1..=TEXT_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
}

fn is_host(text: &str) -> bool {
    is_plain(text, b".-:[]")
}

/// Returns whether the text is a repository of a hub: `OWNER/NAME`.
#[must_use]
pub fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| is_plain(part, b"._-") && !part.starts_with('.');
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Returns whether the text is a revision: a branch, a tag or a commit.
#[must_use]
pub fn is_revision(text: &str) -> bool {
    is_plain(text, b"._-/") && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// Returns whether the text is the ID of a commit: 40 lower-case hex digits.
#[must_use]
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_the_fields_of_an_origin_are_plain_and_short() {
        let good = HubOrigin {
            host: "huggingface.co".into(),
            repository: "HuggingFaceTB/SmolLM2-135M".into(),
            revision: "refs/pr/3".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
        };
        good.check().unwrap();
        let with = |change: fn(&mut HubOrigin)| {
            let mut origin = good.clone();
            change(&mut origin);
            origin.check().map_err(|field| field.param)
        };
        assert_eq!(with(|origin| origin.host = "127.0.0.1:8080".into()), Ok(()));
        assert_eq!(with(|origin| origin.host = "a b".into()), Err("origin.host"));
        for repository in ["gpt2", "a/b/c", "../b", "a/..", "a/`b`", ""] {
            let origin = HubOrigin { repository: repository.into(), ..good.clone() };
            assert_eq!(origin.check().unwrap_err().param, "origin.repository", "{repository}");
        }
        assert_eq!(with(|origin| origin.revision = "a//b".into()), Err("origin.revision"));
        assert_eq!(with(|origin| origin.revision = "../main".into()), Err("origin.revision"));
        assert_eq!(with(|origin| origin.revision = "r".repeat(TEXT_BYTES + 1)), Err("origin.revision"));
        assert_eq!(with(|origin| origin.commit = "A".repeat(40)), Err("origin.commit"));
    }
}
