//! The official clients, unmodified but for address and key, and generated requests against the OpenAPI document.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
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
fn platform(settings: &str) -> (Platform, PathBuf) {
    let platform = Platform::start_with(settings).unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let rows = platform.folder().path("train.jsonl");
    fs::write(&rows, tiny::rows(24)).unwrap();
    (platform, rows)
}

/// The program is content; the figures that it tells are noted.
fn content(program: &mut Command, platform: &Platform, rows: &Path) {
    let program = program.env("ATTUNE_ROWS", text(rows).unwrap()).env("ATTUNE_ANSWER", tiny::ANSWER);
    let said = platform.run_client(program).unwrap();
    for line in said.lines().filter(|line| line.starts_with("{\"figure\"")) {
        attune_tests::figure(line);
    }
}

#[test]
fn the_official_python_client_is_content() {
    let (platform, rows) = platform("");
    let mut pytest = Command::new(python());
    pytest.args(["-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", &here("python/conformance")]);
    content(&mut pytest, &platform, &rows);
}

#[test]
fn the_official_node_client_is_content() {
    let (platform, rows) = platform("");
    let mut node = Command::new("node");
    node.args(["--test", &here("node/conformance.test.cjs")]).env("NODE_PATH", tools("node-tests/node_modules"));
    content(&mut node, &platform, &rows);
}

#[test]
#[ignore = "takes minutes: make conformance"]
fn the_document_holds_against_ten_thousand_requests() {
    // Somebody who could let people in, and hooks of this machine; nobody listens at either.
    let issuer = "http://127.0.0.1:9";
    let (platform, rows) =
        platform(&format!("[webhooks]\nallow_loopback = true\n[[oidc]]\nissuer = '{issuer}'\naudience = ['attune']\n"));
    let mut fuzz = Command::new(python());
    fuzz.arg(here("python/fuzz.py")).env("ATTUNE_ISSUER", issuer);
    content(&mut fuzz, &platform, &rows);
}
