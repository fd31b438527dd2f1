//! The licence of a base model, named as SPDX or a model hub does: `apache-2.0`, `llama3.2`.

use crate::bad_field::BadField;

/// The maximum length of a licence's name, in bytes.
const NAME_BYTES: usize = 64;

/// The text for a licence that is not known, in model cards and in GGUF files. It is Hugging Face's own name for it.
pub const UNKNOWN: &str = "unknown";

/// Returns the name in the form that is stored: without spaces around it, in lower case; `None`: it names no licence.
/// No stored name needs to be escaped in Markdown or YAML.
#[must_use]
pub fn name(text: &str) -> Option<String> {
    let name = text.trim().to_ascii_lowercase();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
    let is_name = (2..=NAME_BYTES).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(is_plain);
    (is_name && !matches!(name.as_str(), UNKNOWN | "null" | "none" | "true" | "false" | "yes" | "no")).then_some(name)
}

/// Returns the licence that a model card or a GGUF file names: hubs have `other`, with another key for its name.
#[must_use]
pub fn of_names(license: &str, other: Option<&str>) -> Option<String> {
    let found = name(license)?;
    if found == "other" { Some(other.and_then(name).unwrap_or(found)) } else { Some(found) }
}

/// Checks the licence of a request, and returns its name.
///
/// # Errors
/// [`BadField`]: the text is not a name.
pub fn check(text: &str) -> Result<String, BadField> {
    name(text).ok_or_else(|| BadField {
        param: "license",
        given: text.chars().take(NAME_BYTES).collect(),
        allowed: format!("a licence's name of 2 to {NAME_BYTES} letters, digits, '.', '-', '_' and '+', or left out"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_a_licence_is_named_by_one_short_word() {
        assert_eq!(name(" Apache-2.0\n").as_deref(), Some("apache-2.0"));
        assert_eq!(check("llama3.2").unwrap(), "llama3.2");
        for wrong in ["", "x", "2.0", "a b", "mit\n---", "`mit`", "Unknown", "null", "c:d"] {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
        assert_eq!(of_names("other", Some("Qwen-Research")).as_deref(), Some("qwen-research"));
        assert_eq!(of_names("other", Some("see below")).as_deref(), Some("other"));
        assert_eq!(of_names("MIT", Some("x-y")).as_deref(), Some("mit"));
        assert!(check(&"a".repeat(NAME_BYTES)).is_ok());
        let refused = check(&"a".repeat(NAME_BYTES + 1)).unwrap_err();
        assert_eq!((refused.param, refused.given.len()), ("license", NAME_BYTES));
    }
}
