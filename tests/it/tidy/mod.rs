//! Tests of the source code's form: import cycles, sizes, words, file headers, SQL in one crate.

mod circles;
mod dependencies;
mod sizes;
mod words;

use std::{fs, path::PathBuf};

use crate::workspace::{folder, members, root};

/// Returns the path and the text of every Rust file.
pub(crate) fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = members().iter().map(|member| folder(member).to_owned()).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Returns a file's text without the test module at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("no //! at the top", &silent);
}

#[test]
fn sql_lives_in_store_and_is_never_built_from_text() {
    let misplaced: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| !path.to_string_lossy().contains("tests/it/tidy/"))
        .filter(|(path, text)| {
            let home = path.components().any(|c| c.as_os_str() == "store");
            let queries = without_tests(text).contains("sqlx::query");
            // The only composed SQL: the beginning of a transaction, with a UUID, which saves a round trip.
            let built = text.contains("AssertSqlSafe") && !path.ends_with("store/src/db.rs");
            (queries && !home) || built
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("SQL outside of store, or composed SQL", &misplaced);
}

/// Checks that connections are acquired only through `store::db`, which refuses a second one if assertions are compiled
/// in: a task that holds a connection of the pool and waits for another one can deadlock all tasks.
#[test]
fn attack_a05_connections_are_taken_in_one_place() {
    const WAYS: [&str; 4] = ["pool.acquire(", "pool.begin", "db.acquire(", "db.begin"];
    let taken: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| {
            ["api/src", "inference/src", "scheduler/src", "store/src"]
                .iter()
                .any(|room| path.display().to_string().contains(room))
        })
        .filter(|(path, _)| !path.components().any(|c| c.as_os_str() == "tests") && !path.ends_with("tests.rs"))
        .filter(|(path, _)| !path.ends_with("store/src/testing.rs") && !path.ends_with("store/src/connection.rs"))
        .flat_map(|(path, text)| {
            let lines = without_tests(text).lines().filter(|line| WAYS.iter().any(|way| line.contains(way)));
            lines.map(|line| format!("{}: {}", path.display(), line.trim())).collect::<Vec<_>>()
        })
        .collect();
    assert_none("a connection that is not taken through store::db", &taken);
}

#[test]
fn lints_are_expected_with_a_reason_never_allowed() {
    let allowed: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| !path.to_string_lossy().contains("tests/it/tidy/"))
        .filter(|(_, text)| text.contains("#[allow(") || text.contains("#![allow("))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("#[allow]", &allowed);
}

/// Checks that programs log by `attune_process::log` or print by `cli/src/output.rs`: `print!` and the like panic if
/// the reader of stdout or stderr has exited, and block if it stalls.
#[test]
fn attack_a27_no_program_prints_where_a_reader_may_be_gone() {
    let printing: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| path.components().any(|part| part.as_os_str() == "src"))
        .filter(|(path, _)| !path.to_string_lossy().contains("/src/tests") && !path.ends_with("tests.rs"))
        .filter(|(_, text)| ["print!(", "println!("].iter().any(|name| without_tests(text).contains(name)))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("print!, println!, eprint! or eprintln!", &printing);
}
