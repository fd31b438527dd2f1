//! The licence of a model, from the files next to its weights.
//!
//! Source of the front matter: "Model Cards" in the documentation of the Hugging Face Hub.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use attune_domain::license::of_names;

use crate::source::Source;

/// The number of bytes of a file that are read: front matter and titles are at the beginning.
const READ_BYTES: u64 = 64 << 10;

/// The names of files with the text of a licence.
const FILES: [&str; 5] = ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"];

/// The licences that are known by phrases of their text, which all must occur in it, in lower case.
const TEXTS: [(&str, &[&str]); 7] = [
    ("apache-2.0", &["apache license", "version 2.0"]),
    ("mit", &["permission is hereby granted, free of charge", "the software is provided \"as is\""]),
    ("llama3.3", &["llama 3.3 community license agreement"]),
    ("llama3.2", &["llama 3.2 community license agreement"]),
    ("llama3.1", &["llama 3.1 community license agreement"]),
    ("llama3", &["meta llama 3 community license agreement"]),
    ("gemma", &["gemma terms of use"]),
];

/// Returns the licence that a folder states: in the front matter of its `README.md`, or else by the text of its licence
/// file; `None`: neither names a known one.
pub(crate) fn of_folder(folder: &Path) -> Option<String> {
    let from_card = beginning(&folder.join("README.md")).and_then(|text| of_front_matter(&text));
    from_card.or_else(|| FILES.iter().find_map(|name| of_text(&beginning(&folder.join(name))?)))
}

/// Returns the licence that a GGUF file states.
pub(crate) fn of_gguf(source: &Source) -> Option<String> {
    of_names(source.text("general.license")?, source.text("general.license.name"))
}

fn beginning(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(READ_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the licence in the front matter of a model card: a text, or the first one of a list.
fn of_front_matter(card: &str) -> Option<String> {
    let mut lines = card.lines();
    lines.next().filter(|line| line.trim_end() == "---")?;
    let lines: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let value = |key: &str| {
        let at = lines.iter().position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
        let scalar = unquoted(lines[at].split_once(':')?.1);
        if !scalar.is_empty() {
            return Some(scalar);
        }
        lines.get(at + 1)?.trim_start().strip_prefix("- ").map(unquoted)
    };
    of_names(value("license")?, value("license_name"))
}

/// Returns a value of YAML without spaces, brackets of a list with one element, and quotes.
fn unquoted(value: &str) -> &str {
    value.trim().trim_matches(['[', ']']).trim().trim_matches(['"', '\''])
}

/// Returns the licence of this text.
fn of_text(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").to_lowercase();
    let (name, _) = TEXTS.iter().find(|(_, phrases)| phrases.iter().all(|phrase| text.contains(phrase)))?;
    Some((*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_a_licence_in_its_front_matter_only() {
        for (card, wanted) in [
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", Some("apache-2.0")),
            ("---\nlicense: 'MIT'\n---\n", Some("mit")),
            ("---\r\nlicense:\r\n- cc-by-4.0\r\n- mit\r\n---\r\n", Some("cc-by-4.0")),
            ("---\nlicense: [mit]\n---\n", Some("mit")),
            ("---\nlicense: other\nlicense_name: qwen-research\n---\n", Some("qwen-research")),
            ("---\nlicense: other\n---\n", Some("other")),
            ("---\nlicense: unknown\n---\n", None),
            ("---\nlicense_link: LICENSE\n---\nlicense: mit", None),
            ("# A model\n---\nlicense: mit\n---\n", None),
            ("", None),
        ] {
            assert_eq!(of_front_matter(card).as_deref(), wanted, "{card:?}");
        }
    }

    #[test]
    fn a_folder_without_a_card_has_the_licence_of_its_text() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of_folder(folder.path()), None);
        let text =
            "                                 Apache License\n                           Version 2.0, January 2004\n";
        std::fs::write(folder.path().join("LICENSE"), text).unwrap();
        assert_eq!(of_folder(folder.path()).as_deref(), Some("apache-2.0"));
        std::fs::write(folder.path().join("README.md"), "---\nlicense: llama3.2\n---\n").unwrap();
        assert_eq!(of_folder(folder.path()).as_deref(), Some("llama3.2"));
        assert_eq!(of_text("Llama 3.1  COMMUNITY\nLICENSE AGREEMENT").as_deref(), Some("llama3.1"));
        assert_eq!(of_text("All rights reserved."), None);
    }
}
