//! The watches: recordings of a real API server, expired, cut and hanging streams, and the end with the provider.

use std::time::Duration;

use attune_domain::run::process::EndCause;
use attune_process::error_chain::chain;
use serde_json::{Value, json};

use super::{
    URL, ended, launch, pending, process, provider, provider_at, recorded,
    server::{Answer, Server, status},
    until,
};
use crate::providers::{
    kubernetes::names::Instance,
    provider::{Process, Program, Provider},
};

/// Returns a recorded object as one of this provider: with its labels, and as a Job that was released.
fn ours(object: &Value, handle: &str) -> Value {
    let labels = Instance::new("kubernetes", URL).labels(Program::Trainer, handle);
    let mut object = object.clone();
    for (key, value) in labels {
        object["metadata"]["labels"][key.as_str()] = json!(value);
    }
    object["metadata"]["annotations"]["attune.dev/released"] = json!("true");
    object
}

/// Replays the streams of a recording, whose events have versions, in their order. Calls `seen` after each event.
async fn replay(server: &Server, name: &str, handle: &str, seen: impl AsyncFn(&str)) {
    let recording = recorded(name);
    let stream = |key: &str, resource: &'static str| -> Vec<(u64, &'static str, Value)> {
        let event = |event: &Value| {
            let version: u64 = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            (version, resource, event.clone())
        };
        recording[key].as_array().unwrap().iter().map(event).collect()
    };
    let mut events = [stream("job_watch", "jobs"), stream("pod_watch", "pods")].concat();
    events.sort_by_key(|(version, ..)| *version);
    for (_, resource, event) in events {
        let name = event["object"]["metadata"]["name"].as_str().unwrap();
        match event["type"].as_str().unwrap() {
            "DELETED" => server.remove(resource, name),
            "BOOKMARK" => server.bookmark(resource),
            _ => server.put(resource, ours(&event["object"], handle)),
        }
        seen(event["object"]["status"]["phase"].as_str().unwrap_or_default()).await;
    }
}

#[tokio::test]
async fn a_recorded_job_that_succeeds_waits_runs_and_ends() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    let kubernetes = &kubernetes;
    replay(&server, "job-succeeds", "run_1", async |phase: &str| match phase {
        "Pending" => until("waits", async || pending(kubernetes, "run_1").await.is_some()).await,
        "Running" => {
            let running = Process { handle: "run_1".into(), pending: None, ended: None };
            until("runs", async || process(kubernetes, "run_1").await.as_ref() == Some(&running)).await;
        }
        _ => {}
    })
    .await;
    until("ends", async || ended(kubernetes, "run_1").await.is_some()).await;
    let end = ended(kubernetes, "run_1").await.unwrap();
    assert_eq!((end.cause, end.message.as_str()), (EndCause::Program, "the Kubernetes pod ended (exit status: 0)"));
}

#[tokio::test]
async fn recorded_ends_have_their_causes() {
    for (name, cause, message) in [
        ("job-fails-backoff", EndCause::Program, "the Kubernetes pod ended (exit status: 3)"),
        // Its pod is deleted by the Job controller.
        ("job-deadline", EndCause::Deadline, "the Kubernetes Job reached its time limit of 1440 minutes"),
    ] {
        let server = Server::start().await;
        let kubernetes = provider(&server).await;
        let kubernetes = &kubernetes;
        replay(&server, name, "run_1", async |phase: &str| {
            if phase == "Running" {
                until("runs", async || {
                    process(kubernetes, "run_1").await.is_some_and(|process| process.pending.is_none())
                })
                .await;
            }
        })
        .await;
        until(name, async || ended(kubernetes, "run_1").await.is_some_and(|end| end.message == message)).await;
        assert_eq!(ended(kubernetes, "run_1").await.unwrap().cause, cause);
    }
}

#[tokio::test]
async fn a_recorded_pod_that_fits_no_node_waits_with_the_schedulers_message() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    replay(&server, "job-unschedulable", "run_1", async |_: &str| {}).await;
    until("the message", async || {
        let reason = pending(&kubernetes, "run_1").await.unwrap_or_default();
        reason.starts_with(
            "Waiting for a node of Kubernetes: 0/3 nodes are available: 1 node(s) had untolerated taint(s)",
        )
    })
    .await;
}

#[tokio::test]
async fn a_bookmark_moves_the_version_and_a_list_is_not_repeated_for_each_query() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    until("the first list", async || kubernetes.list().await.is_ok()).await;
    server.bookmark("jobs");
    server.end_watches("jobs", false);
    until("the watch resumes", async || server.requests("WATCH jobs").len() == 2).await;
    for _ in 0..50 {
        kubernetes.list().await.unwrap();
        kubernetes.offers().await.unwrap();
    }
    let watched = &server.requests("WATCH jobs")[1];
    assert_eq!((&watched["resourceVersion"], &watched["allowWatchBookmarks"]), (&json!("1"), &json!("true")));
    let lists = ["GET jobs", "GET pods"].map(|request| server.requests(request).len());
    assert_eq!(lists, [1, 1]);
}

#[tokio::test]
async fn attack_an_expired_watch_lists_again_and_loses_nothing() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    kubernetes.launch(launch(Program::Trainer, "run_2")).await.unwrap();
    until("both", async || process(&kubernetes, "run_2").await.is_some()).await;
    // While no watch is open, one Job is deleted; the next watch is refused with 410.
    let gone = status(410, "Expired", "too old resource version");
    server.answer("WATCH jobs", Answer::Status(410, gone, None));
    server.expire("jobs");
    server.remove("jobs", "run-1");
    until("the list", async || {
        process(&kubernetes, "run_1").await.is_none() && process(&kubernetes, "run_2").await.is_some()
    })
    .await;
    until("the second list", async || server.requests("GET jobs").len() >= 3).await;
}

#[tokio::test]
async fn attack_a_cut_and_a_hanging_watch_resume() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    until("the first list", async || kubernetes.list().await.is_ok()).await;
    for (at, is_cut) in [(1, true), (2, false), (3, true)] {
        server.end_watches("pods", is_cut);
        server.end_watches("jobs", is_cut);
        let handle = format!("run_{at}");
        kubernetes.launch(launch(Program::Trainer, &handle)).await.unwrap();
        until("the Job", async || {
            pending(&kubernetes, &handle).await.is_some_and(|why| why.contains("create the pod"))
        })
        .await;
    }
    server.answer("WATCH jobs", Answer::Slow(Duration::from_secs(8)));
    server.end_watches("jobs", true);
    until("a watch that does not begin is an error", async || {
        kubernetes
            .list()
            .await
            .is_err_and(|error| chain(&error).contains("Kubernetes did not watch jobs.batch within 5 s"))
    })
    .await;
    until("it resumes", async || kubernetes.list().await.is_ok()).await;
    assert_eq!(server.requests("GET jobs").len(), 1, "nothing was listed again");
}

#[tokio::test]
async fn a_role_without_a_right_is_named_and_jobs_wait() {
    let server = Server::start().await;
    let forbidden = "pods is forbidden: User \"attune\" cannot list resource \"pods\"";
    for _ in 0..3 {
        server.answer("GET pods", Answer::Status(403, status(403, "Forbidden", forbidden), None));
    }
    let kubernetes = provider(&server).await;
    until("the error", async || {
        kubernetes.list().await.is_err_and(|error| {
            let said = "listing the Jobs failed: Kubernetes does not allow the scheduler to list pods in default: ";
            error.is_passing() && chain(&error) == format!("{said}{forbidden}")
        })
    })
    .await;
    until("the role was extended", async || kubernetes.list().await.is_ok()).await;
}

#[tokio::test]
async fn a_job_that_is_being_deleted_is_not_listed() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    until("it is listed", async || process(&kubernetes, "run_1").await.is_some()).await;
    let mut job = server.get("jobs", "run-1").unwrap();
    job["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    job["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    server.put("jobs", job);
    until("it is not listed", async || kubernetes.list().await.is_ok_and(|all| all.is_empty())).await;
}

#[tokio::test]
async fn a_scheduler_that_starts_later_adopts_the_jobs_of_its_provider_only() {
    let server = Server::start().await;
    let first = provider(&server).await;
    first.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    drop(first);
    let second = provider(&server).await;
    let other = provider_at(&server.address.to_string(), &json!({"name": "other"})).await;
    until("it is adopted", async || process(&second, "run_1").await.is_some()).await;
    until("the other lists", async || other.list().await.is_ok()).await;
    assert_eq!(other.list().await.unwrap(), []);
    assert!(second.outlives_scheduler());
}

#[tokio::test]
async fn the_watches_end_with_the_provider() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    until("the first list", async || kubernetes.list().await.is_ok()).await;
    drop(kubernetes);
    let before = server.requests("WATCH jobs").len();
    server.end_watches("jobs", true);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(server.requests("WATCH jobs").len(), before);
}
