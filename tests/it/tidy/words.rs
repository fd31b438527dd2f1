//! The words of comments: STYLE.md lists terms that are not used, and their replacements.

use std::fs;

use regex_lite::Regex;

/// The words that no doc comment begins with.
const FIRST_WORDS: [&str; 13] =
    ["What", "Whether", "Those", "Its", "It", "Of", "Which", "Whose", "How", "Where", "Does", "Somebody", "Whoever"];

/// Returns the left column of STYLE.md's glossary: the terms between backquotes.
fn banned() -> Vec<String> {
    let style = fs::read_to_string(super::root().join("STYLE.md")).unwrap();
    let glossary = style.split("## Glossary").nth(1).expect("a section 'Glossary'");
    let rows = glossary.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Returns the comment lines of a file, with their line numbers.
fn comments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(number, line)| Some((number + 1, line.trim_start().strip_prefix("//")?)))
}

/// Returns the first lines of doc comments, with their line numbers.
fn first_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let doc = line.trim_start().strip_prefix("///");
        let first = doc.filter(|_| !inside);
        inside = doc.is_some();
        first.map(|line| (number + 1, line.trim_start()))
    })
}

fn begins_badly(line: &str) -> bool {
    let word = line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    FIRST_WORDS.contains(&word)
}

#[test]
fn comments_use_the_field_s_words() {
    let terms = banned();
    assert!(terms.len() >= 20, "the glossary has {} terms", terms.len());
    let any = terms.iter().map(|term| regex_lite::escape(term)).collect::<Vec<_>>().join("|");
    let banned = Regex::new(&format!(r"(?i)\b(?:{any})\b")).unwrap();
    let code = Regex::new("`[^`]*`").unwrap();
    let mut found = Vec::new();
    for (path, text) in super::sources() {
        let place = |line: usize, said: &str| format!("{}:{line}: {}", path.display(), said.trim());
        found.extend(first_lines(&text).filter(|(_, line)| begins_badly(line)).map(|(at, line)| place(at, line)));
        let in_prose = |line: &str| banned.is_match(&code.replace_all(line, "`…`"));
        found.extend(comments(&text).filter(|(_, line)| in_prose(line)).map(|(at, line)| place(at, line)));
    }
    println!("FIGURE banned_words {}", found.len());
    super::assert_none("words that STYLE.md replaces", &found);
}

#[test]
fn the_first_line_of_a_doc_comment_is_found() {
    let text = "/// One.\n/// What of it.\nfn a() {}\n    /// What is.\n    b: u8,\n//! What\n";
    assert_eq!(first_lines(text).collect::<Vec<_>>(), [(1, "One."), (4, "What is.")]);
    assert!(begins_badly("Its name.") && begins_badly("What, then") && !begins_badly("Items"));
}
