//! Chats and completions, asked for with the official Python client.

use std::process::Command;

use attune_tests::platform::Platform;

use crate::openai_client::python;

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_is_answered_in_every_way_it_asks() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/inference.py");
    let output = Command::new(python())
        .args([script, "tiny", "tiny-tools"])
        .env("OPENAI_BASE_URL", format!("{}/v1", platform.url))
        .env("OPENAI_API_KEY", &platform.api_key)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{}", platform.folder().log());
}
