//! Chat completions and completions with the official Python client, and with `attune complete`.

use std::process::Command;

use attune_tests::platform::Platform;

use crate::openai_client::python;

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_is_answered_in_every_way() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    platform.import_tiny_with_tools().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/inference.py");
    platform.run_client(Command::new(python()).args([script, "tiny", "tiny-tools"])).unwrap();

    let asked = ["complete", "--model", "tiny", "--max-tokens", "5", "--seed", "1", "--n", "2", "--echo", "once"];
    let answer = platform.json(&asked).unwrap();
    let ends: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|end| end["text"].as_str().unwrap()).collect();
    assert!(ends.len() == 2 && ends.iter().all(|end| end.starts_with("once")), "{answer}");
    let printed = String::from_utf8(platform.attune(&asked).unwrap().stdout).unwrap();
    assert_eq!(printed, format!("{}\n{}\n", ends[0], ends[1]));
}
