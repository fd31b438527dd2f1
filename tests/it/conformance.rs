//! The official clients, unmodified except for address and key, and generated requests against the OpenAPI document.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};

use crate::openai_client::python;

/// Returns a path in the folder in which `scripts/setup --tests` installs the tests' Python and the clients.
fn tools(path: &str) -> PathBuf {
    PathBuf::from(python()).ancestors().nth(3).unwrap().join(path)
}

fn here(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Starts a platform with the tiny models; returns it, and a file of training rows that have one answer.
fn platform(settings: &str) -> (Platform, PathBuf) {
    let platform = Platform::start_with(settings).unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let rows = platform.folder().path("train.jsonl");
    fs::write(&rows, tiny::rows(24)).unwrap();
    (platform, rows)
}

/// Runs a client program, which must succeed, and records the figures that it prints. Returns its output.
fn content(program: &mut Command, platform: &Platform, rows: &Path) -> String {
    let program = program.env("ATTUNE_ROWS", text(rows).unwrap()).env("ATTUNE_ANSWER", tiny::ANSWER);
    let said = platform.run_client(program).unwrap();
    for line in said.lines().filter(|line| line.starts_with("{\"figure\"")) {
        attune_tests::figure(line);
    }
    said
}

/// A client and a flow that is run with it, as in `docs/CLIENTS.md`.
type Flow = (String, String);

/// Returns the flows that passed, from the summary that pytest prints with `-rA`.
fn passed_by_pytest(said: &str, client: impl Fn(&str) -> &str) -> BTreeSet<Flow> {
    let paths = said.lines().filter_map(|line| line.strip_prefix("PASSED ")?.rsplit('/').next());
    paths
        .filter_map(|path| path.split_once(".py::"))
        .map(|(file, name)| (client(file).to_owned(), format!("{file}::{name}")))
        .collect()
}

/// Returns the passed flows of the official Python client and of LoRAX's.
fn python_flows() -> BTreeSet<Flow> {
    let (platform, rows) = platform("");
    let said = pytest(&python(), "python/conformance", &platform, &rows);
    passed_by_pytest(&said, |file| if file == "test_lorax" { "lorax-client" } else { "openai (Python)" })
}

/// Returns the passed flows of clients that wrap the official one.
fn wrapping_flows() -> BTreeSet<Flow> {
    let (platform, rows) = platform("");
    let said = pytest(text(&tools("venv-clients/bin/python")).unwrap(), "python/clients", &platform, &rows);
    passed_by_pytest(&said, |file| match file {
        "test_instructor" => "instructor",
        "test_litellm" => "litellm",
        _ => "langchain-openai",
    })
}

fn pytest(python: &str, folder: &str, platform: &Platform, rows: &Path) -> String {
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-x", "-rA", "--no-header", "-p", "no:cacheprovider", &here(folder)]);
    content(&mut pytest, platform, rows)
}

/// Returns the passed flows of the official Node client.
fn node_flows() -> BTreeSet<Flow> {
    let (platform, rows) = platform("");
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=tap", &here("node/conformance.test.cjs")])
        .env("NODE_PATH", tools("node-tests/node_modules"));
    let said = content(&mut node, &platform, &rows);
    let passed = said.lines().filter_map(|line| line.trim_start().strip_prefix("ok ")?.split_once(" - "));
    let named = passed.map(|(_, name)| name.replace('\\', "")).filter(|name| !name.ends_with(".cjs"));
    named.map(|name| ("openai (Node)".to_owned(), name)).collect()
}

/// Returns the rows of `docs/CLIENTS.md`.
fn page() -> BTreeSet<Flow> {
    let page = fs::read_to_string(here("../docs/CLIENTS.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect()
}

#[test]
fn flow_every_row_of_the_page_of_clients_is_run_and_right() {
    let passed: BTreeSet<Flow> = [python_flows(), node_flows(), wrapping_flows()].into_iter().flatten().collect();
    let page = page();
    println!("FIGURE client_flows_right {}", page.intersection(&passed).count());
    assert_eq!(page.difference(&passed).collect::<Vec<_>>(), Vec::<&Flow>::new(), "rows that did not pass");
    assert_eq!(passed.difference(&page).collect::<Vec<_>>(), Vec::<&Flow>::new(), "flows without a row");
    assert!(page.len() >= 40);
}

#[test]
#[ignore = "takes minutes: make conformance"]
fn the_document_holds_against_ten_thousand_requests() {
    // Enables OIDC issuers and webhooks on loopback; no server listens at either.
    let issuer = "http://127.0.0.1:9";
    let (platform, rows) =
        platform(&format!("[webhooks]\nallow_loopback = true\n[[oidc]]\nissuer = '{issuer}'\naudience = ['attune']\n"));
    let mut fuzz = Command::new(python());
    fuzz.arg(here("python/fuzz.py")).env("ATTUNE_ISSUER", issuer);
    content(&mut fuzz, &platform, &rows);
}
