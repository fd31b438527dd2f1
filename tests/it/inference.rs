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
    platform.run_client(Command::new(python()).args([script, "tiny", "tiny-tools"])).unwrap();
}
