//! The official Python client, unmodified except for `base_url` and key, against a real platform.

use std::{fs, process::Command};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};

/// Returns the Python of the tests' virtual environment, which `make test` creates; `scripts/setup` installs the
/// official client into it.
pub(crate) fn python() -> String {
    let cache = std::env::home_dir().unwrap().join(".cache/attune");
    let cache = option_env!("ATTUNE_CACHE").map_or(cache, Into::into);
    cache.join("venv-tests/bin/python").to_str().unwrap().to_owned()
}

#[test]
fn the_official_python_client_tunes_and_chats() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let rows = platform.folder().path("train.jsonl");
    fs::write(&rows, tiny::rows(24)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/openai_client.py");
    platform.run_client(Command::new(python()).args([script, text(&rows).unwrap(), tiny::ANSWER])).unwrap();
}
