//! Third-party tokenizers and templates on a running platform: the boundary between a prompt and its answer, and a
//! template that prints the date.

use std::{fs, path::PathBuf, time::Duration};

use attune_tests::platform::{Platform, text};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/cases").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn case_13_an_answer_keeps_the_space_that_it_begins_with() {
    let platform = Platform::start().unwrap();
    platform.json(&["models", "import", text(&case("13-seam")).unwrap(), "--name", "tiny"]).unwrap();
    let ask = |echo: bool| {
        let body =
            json!({"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0, "logprobs": 0, "echo": echo});
        platform.call(Method::POST, "/v1/completions", Some(body))
    };
    let (status, answer) = ask(false).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["logprobs"]["tokens"]), (&json!(" b"), &json!([" b"])), "{answer}");
    let (status, answer) = ask(true).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "a b", "{answer}");
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", " b"]), "{answer}");
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1]), "{answer}");
    let file = platform
        .upload("{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \" b\"}\n")
        .unwrap();
    let body = json!({"model": "tiny", "rows": [1, 2]});
    let (status, rows) = platform.call(Method::POST, &format!("/v1/files/{file}/preview"), Some(body)).await.unwrap();
    assert_eq!(status, 200, "{rows}");
    let ids: Vec<&Value> = rows["data"].as_array().unwrap().iter().map(|row| &row["ids"]).collect();
    assert_eq!(ids, [&json!([1, 262, 261, 2]), &json!([1, 262, 263, 2])], "{rows}");
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_14_a_job_has_one_now_for_its_check_and_its_training() {
    let platform = Platform::start().unwrap();
    let folder = platform.folder().path("dated");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(case("14-date/model")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    // Seconds represent days: if rendering read the clock, rows would be refused when a second begins between two
    // renderings.
    fs::copy(case("14-date/template.seconds.jinja"), folder.join("chat_template.jinja")).unwrap();
    platform.json(&["models", "import", text(&folder).unwrap(), "--name", "dated"]).unwrap();
    let rows = fs::read_to_string(case("14-date/long.jsonl")).unwrap().repeat(100);
    let file = platform.upload(&rows).unwrap();
    let body = json!({"model": "dated", "training_file": file, "adapter": {"rank": 2},
        "trainer": {"max_steps": 2}});
    for _ in 0..3 {
        let (status, told) =
            platform.call(Method::POST, "/v1/fine_tuning/estimates", Some(body.clone())).await.unwrap();
        assert_eq!(status, 200, "{told}");
    }
    let (status, job) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(body)).await.unwrap();
    assert_eq!(status, 200, "{job}");
    let done = platform.ended(job["id"].as_str().unwrap(), Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    // The manifest states the date of rendering, which is the time when the job was created.
    let model = done["fine_tuned_model"].as_str().unwrap();
    let (status, manifest) = platform.call(Method::GET, &format!("/v1/adapters/{model}/manifest"), None).await.unwrap();
    assert_eq!(status, 200, "{manifest}");
    let second = job["created_at"].as_i64().unwrap().rem_euclid(86_400);
    let time = format!("T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
    let now = manifest["origin"]["template_now"].as_str().unwrap();
    assert!(now.ends_with(&time), "{now} {time}");
    platform.stop(Signal::SIGTERM).unwrap();
}
