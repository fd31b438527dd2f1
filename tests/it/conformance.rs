//! The official clients, unmodified but for address and key, and generated requests against the OpenAPI document.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};

use crate::openai_client::python;

/// Beside the Python of the tests, where `scripts/setup --tests` puts the clients.
fn tools(path: &str) -> PathBuf {
    PathBuf::from(python()).ancestors().nth(3).unwrap().join(path)
}

fn here(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// A platform with the tiny models, and rows that teach one answer.
fn platform() -> (Platform, PathBuf) {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let rows = platform.folder().path("train.jsonl");
    fs::write(&rows, tiny::rows(24)).unwrap();
    (platform, rows)
}

fn run(command: &mut Command, platform: &Platform, rows: &Path) -> Output {
    let command =
        command.env("OPENAI_BASE_URL", format!("{}/v1", platform.url)).env("OPENAI_API_KEY", &platform.api_key);
    command.env("ATTUNE_ROWS", text(rows).unwrap()).env("ATTUNE_ANSWER", tiny::ANSWER).output().unwrap()
}

fn content(output: &Output, platform: &Platform) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{}", platform.folder().log());
    for line in said.lines().filter(|line| line.starts_with("{\"figure\"")) {
        attune_tests::figure(line);
    }
}

#[test]
fn the_official_python_client_is_content() {
    let (platform, rows) = platform();
    let mut pytest = Command::new(python());
    pytest.args(["-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", &here("python/conformance")]);
    content(&run(&mut pytest, &platform, &rows), &platform);
}

#[test]
fn the_official_node_client_is_content() {
    let (platform, rows) = platform();
    let mut node = Command::new("node");
    node.args(["--test", &here("node/conformance.test.cjs")]).env("NODE_PATH", tools("node-tests/node_modules"));
    content(&run(&mut node, &platform, &rows), &platform);
}

#[test]
#[ignore = "takes minutes: make conformance"]
fn the_document_holds_against_ten_thousand_requests() {
    let (platform, rows) = platform();
    let mut fuzz = Command::new(python());
    fuzz.arg(here("python/fuzz.py"));
    content(&run(&mut fuzz, &platform, &rows), &platform);
}
