//! Compares `docs/LIMITS.md` with the code: each row's constant has the value that the page states, and its test
//! exists.

use std::fs;

use crate::workspace::root;

/// A row of `docs/LIMITS.md`.
struct Limit {
    line: usize,
    file: String,
    constant: String,
    value: String,
    test: String,
}

fn plain(cell: &str) -> &str {
    cell.trim().trim_matches('`')
}

/// Parses the rows of all tables of the page; a row without five cells of the expected form is an error.
fn limits(page: &str) -> Result<Vec<Limit>, String> {
    let rows = page
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|') && !line.starts_with("|---") && !line.starts_with("| Bounded "));
    rows.map(|(at, row)| limit(at + 1, row).ok_or_else(|| format!("line {}: {row}", at + 1))).collect()
}

fn limit(line: usize, row: &str) -> Option<Limit> {
    let cells: Vec<&str> = row.trim().trim_matches('|').split(" | ").collect();
    let [_, _, constant, _, test] = cells.as_slice() else { return None };
    let (place, value) = plain(constant).split_once(" = ")?;
    let (file, constant) = place.split_once("::")?;
    Some(Limit { line, file: file.into(), constant: constant.into(), value: value.into(), test: plain(test).into() })
}

/// Returns whether `source` declares `constant` with exactly the expression `value`.
fn declares(source: &str, constant: &str, value: &str) -> bool {
    source.lines().any(|line| {
        let declared = line.split_once(&format!("const {constant}: ")).and_then(|(_, rest)| rest.split_once(" = "));
        declared.is_some_and(|(_, rest)| rest.split(';').next() == Some(value))
    })
}

#[test]
fn the_page_of_limits_agrees_with_the_code() {
    let limits = limits(&fs::read_to_string(root().join("docs/LIMITS.md")).unwrap()).unwrap();
    let sources = super::tidy::sources();
    let mut wrong = Vec::new();
    for Limit { line, file, constant, value, test } in &limits {
        match fs::read_to_string(root().join(file)) {
            Ok(source) if declares(&source, constant, value) => {}
            Ok(_) => wrong.push(format!("line {line}: {file} has no `const {constant}: … = {value};`")),
            Err(error) => wrong.push(format!("line {line}: {file}: {error}")),
        }
        if !sources.iter().any(|(_, source)| source.contains(&format!("fn {test}("))) {
            wrong.push(format!("line {line}: there is no test `{test}`"));
        }
    }
    assert!(wrong.is_empty(), "docs/LIMITS.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_row_that_differs_from_the_code_is_found() {
    let row = "| tools | 128 | `api/src/x.rs::MOST_TOOLS = 1 << 7` | 400 | `limit_of_tools` |";
    let limit = limit(1, row).unwrap();
    assert_eq!((limit.file.as_str(), limit.constant.as_str()), ("api/src/x.rs", "MOST_TOOLS"));
    assert!(declares("    pub const MOST_TOOLS: usize = 1 << 7; // why", &limit.constant, &limit.value));
    assert!(!declares("const MOST_TOOLS: usize = 1 << 8;", &limit.constant, &limit.value));
    assert!(!declares("const MOST_TOOLS_EVER: usize = 1 << 7;", &limit.constant, &limit.value));
    assert!(limits("| a | b |").is_err());
}
