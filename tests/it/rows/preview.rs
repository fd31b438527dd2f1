//! A preview shows exactly the tokens that a job trains on, and reports invalid fields.

use std::time::Duration;

use attune_tests::{platform::Platform, tiny};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::create;

async fn preview(platform: &Platform, file: &str, body: Value) -> (u16, Value) {
    platform.call(Method::POST, &format!("/v1/files/{file}/preview"), Some(body)).await.unwrap()
}

/// Joins the row's token texts, or only those of trained tokens.
fn text(row: &Value, trained_only: bool) -> String {
    let pieces = row["pieces"].as_array().unwrap().iter().zip(row["mask"].as_array().unwrap());
    pieces.filter(|(_, trained)| !trained_only || **trained == json!(1)).map(|(p, _)| p.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_what_a_job_trains_on() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(8)).unwrap();
    let (status, shown) = preview(&platform, &file, json!({"model": "tiny", "rows": [1, 2, 3, 4, 5, 6, 7, 8]})).await;
    assert_eq!((status, &shown["object"]), (200, &json!("list")), "{shown}");
    let row = &shown["data"][2];
    assert_eq!((&row["object"], &row["line"]), (&json!("file.preview_row"), &json!(3)));
    let answer = format!("{}<|im_end|>\n", tiny::ANSWER);
    assert_eq!(text(row, true), answer);
    let whole = format!("<|im_start|>user\nquestion 2<|im_end|>\n<|im_start|>assistant\n{answer}");
    assert_eq!(text(row, false), whole);
    assert_eq!(
        row["tokens"].as_u64(),
        Some(whole.len() as u64 - 2 * 12 - 2 * 10 + 4),
        "a byte a token, four special ones"
    );

    let mut job = crate::house::job(&file);
    job["method"]["supervised"]["hyperparameters"]["n_epochs"] = json!(2);
    let id = create(&platform, job).await;
    let done = platform.ended(&id, Duration::from_secs(120)).await.unwrap();
    let trained: u64 =
        shown["data"].as_array().unwrap().iter().map(|row| row["trained_tokens"].as_u64().unwrap()).sum();
    assert_eq!(done["trained_tokens"].as_u64(), Some(2 * trained), "{done}");

    let output = platform.attune(&["files", "preview", &file, "--model", "tiny", "--rows", "3"]).unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.starts_with("line 3: ") && printed.contains(&format!("assistant\n⟦{answer}⟧")), "{printed}");
    settings_are_obeyed(&platform, &file).await;
    what_is_wrong_is_named(&platform, &file).await;
}

async fn settings_are_obeyed(platform: &Platform, file: &str) {
    let split = json!({"train_on_prompt": true, "over_length": "split", "max_length": 40});
    let (_, shown) = preview(platform, file, json!({"model": "tiny", "trainer": split})).await;
    let parts = shown["data"].as_array().unwrap();
    assert_eq!(parts.len(), 10, "the first five rows, in two parts each: {shown}");
    assert_eq!((&parts[1]["line"], &parts[1]["part"], &parts[1]["parts"]), (&json!(1), &json!(2), &json!(2)));
    assert_eq!(parts[0]["trained_tokens"], json!(39));
    assert_eq!(parts[0]["over_length"]["policy"], "split");
}

async fn what_is_wrong_is_named(platform: &Platform, file: &str) {
    let texts = platform.upload("{\"text\": \"Once upon a time\"}\n").unwrap();
    for (file, body, param) in [
        (file, json!({"model": "tiny", "rows": [1, 9]}), "rows[1]"),
        (file, json!({"model": "nobody"}), "model"),
        (file, json!({"model": "tiny", "lines": [1]}), "lines"),
        (file, json!({"model": "tiny", "trainer": {"over_length": "cut"}}), "trainer.over_length"),
        (file, json!({"model": "tiny", "trainer": {"max_length": 10}}), "rows"),
        (file, json!({"model": "tiny", "method": {"type": "continued_pretraining"}}), "method.type"),
        (&texts, json!({"model": "tiny"}), "method.type"),
    ] {
        let (status, answer) = preview(platform, file, body).await;
        assert!((400..500).contains(&status), "{answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
    let (status, _) = preview(platform, "file-00000000000000000000000000000000", json!({"model": "tiny"})).await;
    assert_eq!(status, 404);
    let pretraining = json!({"model": "tiny", "method": {"type": "continued_pretraining"}});
    let (status, shown) = preview(platform, &texts, pretraining).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(text(&shown["data"][0], true), "nce upon a time<|im_end|>");

    let job = json!({"model": "tiny", "training_file": texts});
    let (status, answer) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("training_file")), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("method.type 'supervised'") && message.contains("text rows"), "{message}");
}
