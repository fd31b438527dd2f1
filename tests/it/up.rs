//! `attune up`: one platform per folder, a graceful stop, and no process or file left behind however it ends.

use std::{path::Path, process::Command, time::Duration};

use attune_tests::{
    platform::{Platform, client, gone, program},
    tiny,
};
use futures::StreamExt;
use nix::sys::signal::{Signal, kill};
use reqwest::Method;
use serde_json::json;

#[test]
fn a_second_start_on_the_same_folder_is_refused() {
    let platform = Platform::start().unwrap();
    let second = Command::new(program("attune").unwrap())
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(platform.folder().data())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("already"), "{}: {said}", second.status);
    platform.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_cleanly_and_the_next_start_finds_everything() {
    let platform = Platform::start().unwrap();
    platform.import_tiny().unwrap();
    let key = platform.api_key.clone();
    // A client that follows the events of a paused job gets a clean end of the stream, and does not delay the stop.
    let file = platform.upload(&tiny::rows(8)).unwrap();
    let job = json!({"model": "tiny", "training_file": file, "hyperparameters": {"n_epochs": 50}});
    let (_, job) = platform.call(Method::POST, "/v1/fine_tuning/jobs", Some(job)).await.unwrap();
    let job = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
    platform.call(Method::POST, &format!("{job}/pause"), Some(json!({}))).await.unwrap();
    let watching = client().get(format!("{}{job}/events?stream=true", platform.url)).bearer_auth(&key).send();
    let watching = watching.await.unwrap();
    let folder = tokio::task::spawn_blocking(|| platform.stop(Signal::SIGINT)).await.unwrap().unwrap();
    let seen = watching.text().await.unwrap(); // fails if the connection was cut
    assert!(seen.starts_with("id:") || seen.starts_with("data:"), "{seen}");
    assert!(!folder.log().contains("cut off"), "{}", folder.log());
    let again = Platform::start_on(folder).unwrap();
    assert_eq!(again.api_key, key);
    let (status, model) = again.call(Method::GET, "/v1/models/tiny", None).await.unwrap();
    assert_eq!((status, model["id"].as_str()), (200, Some("tiny")));
    again.stop(Signal::SIGTERM).unwrap();
}

#[test]
fn kill_9_leaves_no_child_and_the_next_start_takes_over() {
    let platform = Platform::start().unwrap();
    assert!(platform.descendants().unwrap().len() >= 3, "postgres, api and scheduler");
    let folder = platform.stop(Signal::SIGKILL).unwrap(); // waits until every child has exited
    let again = Platform::start_on(folder).unwrap();
    again.import_tiny().unwrap();
    again.stop(Signal::SIGTERM).unwrap();
}

/// Lists the parts of multipart uploads in the embedded object store.
fn unfinished_parts(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder.join("objects")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".upload")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_an_upload_that_kill_9_cuts_off_are_removed_by_the_next_start() {
    let platform = Platform::start().unwrap();
    let begun = futures::stream::iter((0..12).map(|_| Ok::<_, std::io::Error>(vec![7_u8; 1 << 20])));
    let body = reqwest::Body::wrap_stream(begun.chain(futures::stream::pending()));
    let form = reqwest::multipart::Form::new()
        .text("purpose", "user_data")
        .part("file", reqwest::multipart::Part::stream(body).file_name("long.bin"));
    let post = client().post(format!("{}/v1/files", platform.url)).bearer_auth(&platform.api_key).multipart(form);
    let sending = tokio::spawn(post.send());
    let data = platform.folder().data();
    for _ in 0..500 {
        if unfinished_parts(&data).iter().filter(|name| name.contains(".part-")).count() >= 2 {
            break;
        }
        assert!(!sending.is_finished(), "{:?}", sending.await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let folder = tokio::task::spawn_blocking(|| platform.stop(Signal::SIGKILL)).await.unwrap().unwrap();
    assert!(unfinished_parts(&data).len() >= 2, "{:?}", unfinished_parts(&data));
    let again = Platform::start_on(folder).unwrap();
    assert_eq!(unfinished_parts(&data), [""; 0]);
    again.stop(Signal::SIGTERM).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_that_dies_is_started_again() {
    let platform = Platform::start().unwrap();
    let api: Vec<_> = platform.descendants().unwrap().into_iter().filter(|(_, c)| c.contains("attune-api")).collect();
    assert_eq!(api.len(), 1);
    kill(nix::unistd::Pid::from_raw(api[0].0), Signal::SIGKILL).unwrap();
    gone(&api).unwrap();
    let mut answered = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        answered = matches!(platform.call(Method::GET, "/v1/models", None).await, Ok((200, _)));
        if answered {
            break;
        }
    }
    assert!(answered, "{}", platform.folder().log());
    platform.stop(Signal::SIGTERM).unwrap();
}
