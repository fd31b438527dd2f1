//! Batches across real processes: with the official client, over two adapters, and with workers that are killed.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use attune_tests::{
    platform::{Platform, text},
    tiny,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    house::{create, job},
    openai_client::python,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_by_the_model_of_each_row_whatever_dies_meanwhile() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(24)).unwrap();
    let id = create(&platform, job(&file)).await;
    let done = platform.ended(&id, Duration::from_secs(180)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    let other = an_adapter_that_corrects_nothing(&platform);

    the_official_client_reads_its_answers(&platform, &other);
    for process in ["attune-scheduler", "attune-api"] {
        a_batch_outlives(&platform, process, &other).await;
    }
    platform.stop(Signal::SIGTERM).unwrap();
}

/// Exports the trained adapter, sets its tensors to zero, and imports it as another adapter.
fn an_adapter_that_corrects_nothing(platform: &Platform) -> String {
    let folder = platform.folder().path("zero");
    platform.json(&["adapters", "export", "house@1", text(&folder).unwrap()]).unwrap();
    let path = folder.join("adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
    bytes[header..].fill(0);
    fs::write(&path, bytes).unwrap();
    fs::remove_file(folder.join("attune_manifest.json")).unwrap();
    platform.json(&["adapters", "import", text(&folder).unwrap(), "--base-model", "tiny"]).unwrap();
    "zero@1".into()
}

fn the_official_client_reads_its_answers(platform: &Platform, other: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/batches.py");
    platform.run_client(Command::new(python()).args([script, tiny::ANSWER, "house@1", other])).unwrap();
}

/// Checks that every row has exactly one response, from its own model, although `process` is killed in between.
async fn a_batch_outlives(platform: &Platform, process: &str, other: &str) {
    const ROWS: usize = 120;
    let row = |i: usize| {
        let model = if i.is_multiple_of(2) { "house@1" } else { other };
        json!({"custom_id": format!("{process}-{i}"), "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": model, "messages": [{"role": "user", "content": "question 3"}], "temperature": 0, "max_tokens": 20,
        }})
    };
    let path = platform.folder().path("requests.jsonl");
    fs::write(&path, (0..ROWS).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
    let batch = platform.json(&["batches", "create", text(&path).unwrap()]).unwrap();
    let id = batch["id"].as_str().unwrap();
    until(platform, id, |batch| batch["request_counts"]["completed"].as_u64() > Some(10)).await;
    let (victim, _) =
        platform.descendants().unwrap().into_iter().find(|(_, command)| command.contains(process)).unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let done = until(platform, id, |batch| batch["completed_at"].is_number()).await;
    assert_eq!(done["request_counts"], json!({"total": ROWS, "completed": ROWS, "failed": 0}), "{done}");

    let out = platform.folder().path("answers.jsonl");
    let printed = platform.attune(&["batches", "results", id, "--out", text(&out).unwrap()]).unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let answers: Vec<Value> =
        fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: BTreeSet<&str> = answers.iter().map(|answer| answer["custom_id"].as_str().unwrap()).collect();
    assert_eq!((answers.len(), ids.len()), (ROWS, ROWS), "each row has one answer");
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer["custom_id"], format!("{process}-{i}"), "in the order of the input");
        let said = &answer["response"]["body"]["choices"][0]["message"]["content"];
        assert_eq!(said == tiny::ANSWER, i.is_multiple_of(2), "{answer}");
    }
}

async fn until(platform: &Platform, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/batches/{id}");
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries <= 1200, "the batch {id} does not come on\n{}", platform.folder().log());
        // The API may be unreachable for a moment, since a test kills it.
        if let Ok((200, batch)) = platform.call(Method::GET, &path, None).await {
            if wanted(&batch) {
                return batch;
            }
            assert!(batch["status"] != "failed", "{batch}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
