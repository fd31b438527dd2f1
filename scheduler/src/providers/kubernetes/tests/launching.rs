//! Launches and stops: the order of the requests, lost answers, and refusals.

use std::time::{Duration, Instant};

use attune_domain::run::process::EndCause;
use attune_process::error_chain::chain;
use serde_json::{Value, json};

use super::{
    config, ended, launch, pending, process, provider, provider_at, recorded,
    server::{Answer, Server, status},
    until,
};
use crate::{
    error::ProviderError,
    providers::{
        kubernetes::{job, names::Instance, provider::Kubernetes, template::Template},
        provider::{Program, Provider},
    },
};

async fn refused(kubernetes: &Kubernetes) -> ProviderError {
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap_err()
}

/// Returns the Job of `run_1` as [`Kubernetes`] creates it.
fn own_job() -> Value {
    let (config, launch) = (config(&json!({})), launch(Program::Trainer, "run_1"));
    let instance = Instance::new("kubernetes", super::URL);
    let template = Template { config: &config, api_url: super::URL, instance: &instance };
    serde_json::to_value(job::job(&template, &launch, &config.offers[0])).unwrap()
}

#[tokio::test]
async fn a_job_is_released_when_its_secret_exists_and_owns_it() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    assert_eq!(kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap(), "run_1");
    let created = &server.requests("POST jobs")[0];
    assert_eq!((&created["metadata"]["name"], &created["spec"]["suspend"]), (&json!("run-1"), &json!(true)));
    assert!(!created.to_string().contains("secret-token"));
    let (job, secret) = (server.get("jobs", "run-1").unwrap(), server.get("secrets", "run-1").unwrap());
    assert_eq!(secret["stringData"]["token"], "secret-token");
    let owner = &secret["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Job"), &job["metadata"]["uid"]));
    assert_eq!(job["spec"]["suspend"], false);
    until("it waits for its pod", async || {
        pending(&kubernetes, "run_1").await.is_some_and(|why| why.contains("create the pod"))
    })
    .await;
}

#[tokio::test]
async fn a_job_is_listed_from_its_launch_on() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    until("the first list", async || kubernetes.list().await.is_ok()).await;
    // The watch is down, so the Job is not known from there.
    server.answer("WATCH jobs", Answer::Slow(Duration::from_secs(3)));
    server.end_watches("jobs", false);
    until("the watch hangs", async || server.requests("WATCH jobs").len() >= 2).await;
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    assert_eq!(pending(&kubernetes, "run_1").await.unwrap(), "Kubernetes is creating the Job");
    until("the watch reports it", async || {
        pending(&kubernetes, "run_1").await.is_some_and(|why| why.contains("create the pod"))
    })
    .await;
}

#[tokio::test]
async fn attack_a_lost_answer_neither_doubles_nor_fails_a_launch() {
    for request in ["POST jobs", "POST secrets", "PATCH jobs"] {
        let server = Server::start().await;
        let kubernetes = provider(&server).await;
        server.answer(request, Answer::Lost);
        kubernetes.launch(launch(Program::Serving, "replica_1")).await.unwrap();
        let job = server.get("jobs", "replica-1").unwrap();
        assert_eq!(job["spec"]["suspend"], false, "{request}");
        assert!(server.get("secrets", "replica-1").is_some(), "{request}");
        assert_eq!(server.requests(request).len(), 2, "{request}");
    }
}

#[tokio::test]
async fn attack_a_crash_between_the_job_and_its_secret_leaves_nothing() {
    let server = Server::start().await;
    // The Job of a scheduler that was killed before it created the Secret.
    server.put("jobs", own_job());
    let kubernetes = provider(&server).await;
    until("it ends", async || ended(&kubernetes, "run_1").await.is_some()).await;
    let end = ended(&kubernetes, "run_1").await.unwrap();
    assert_eq!((end.cause, end.message.contains("was starting")), (EndCause::NotStarted, true));
    kubernetes.stop("run_1").await.unwrap();
    assert!(server.get("jobs", "run-1").is_none());
}

#[tokio::test]
async fn a_failed_start_ends_and_its_job_is_not_adopted() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    let forbidden = "secrets is forbidden: User \"attune\" cannot create resource \"secrets\"";
    server.answer("POST secrets", Answer::Status(403, status(403, "Forbidden", forbidden), None));
    let error = refused(&kubernetes).await;
    let said = "starting attune-trainer failed: Kubernetes does not allow the scheduler to create secrets in default: ";
    assert_eq!((chain(&error), error.is_passing()), (format!("{said}{forbidden}"), true));
    until("the Job ends", async || ended(&kubernetes, "run_1").await.is_some()).await;
}

#[tokio::test]
async fn the_name_of_another_object_is_an_error_and_the_object_stays() {
    let server = Server::start().await;
    let mut foreign = own_job();
    foreign["metadata"]["labels"]["attune.dev/instance"] = json!("another");
    server.put("jobs", foreign);
    let kubernetes = provider(&server).await;
    let error = refused(&kubernetes).await;
    assert!(chain(&error).ends_with("the Job run-1 exists already, and does not belong to this provider"));
    assert!(error.is_passing() && server.get("secrets", "run-1").is_none());
    kubernetes.stop("run_1").await.unwrap();
    assert!(server.get("jobs", "run-1").is_some() && server.requests("DELETE jobs").is_empty());

    let mut ending = own_job();
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    server.put("jobs", ending);
    assert!(chain(&refused(&kubernetes).await).ends_with("the Job run-1 is being deleted"));
}

#[tokio::test]
async fn the_api_servers_message_is_in_the_error() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    let invalid = recorded("invalid-422");
    server.answer("POST jobs", Answer::Status(422, invalid["body"].clone(), None));
    let error = refused(&kubernetes).await;
    assert!(error.is_passing());
    let text = chain(&error);
    assert!(text.contains("(HTTP 422): Job.batch \"Rec_Bad\" is invalid: metadata.name: Invalid value"), "{text}");
    assert!(text.chars().count() < 450, "{text}");

    server.answer("POST jobs", Answer::Status(200, json!("<html>"), None));
    let text = chain(&refused(&kubernetes).await);
    assert!(text.contains("the answer of Kubernetes to create jobs.batch cannot be read"), "{text}");
    let mut elsewhere = launch(Program::Trainer, "run_1");
    elsewhere.resources.offer = "h100".into();
    let error = kubernetes.launch(elsewhere).await.unwrap_err();
    assert!(chain(&error).ends_with("the configuration has no offer `h100` any more"), "{}", chain(&error));
}

#[tokio::test]
async fn a_server_that_is_too_busy_is_queried_again_after_the_time_that_it_names() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    let busy = status(429, "TooManyRequests", "please try again later");
    server.answer("POST jobs", Answer::Status(429, busy.clone(), Some(1)));
    let since = Instant::now();
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    assert!(since.elapsed() >= Duration::from_secs(1), "Retry-After was 1 s");
    assert_eq!(server.requests("POST jobs").len(), 2);

    // It stays busy for longer than a request may take.
    server.answer("POST jobs", Answer::Status(429, busy, Some(60)));
    let error = refused(&kubernetes).await;
    assert!(chain(&error).contains("Kubernetes did not create jobs.batch within 5 s"), "{}", chain(&error));
    assert!(error.is_passing());
}

#[tokio::test]
async fn an_unreachable_server_is_a_passing_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let kubernetes = provider_at(&address, &json!({})).await;
    until("the first failure", async || {
        kubernetes.list().await.is_err_and(|error| chain(&error).contains("cannot be reached to list"))
    })
    .await;
    let error = kubernetes.offers().await.unwrap_err();
    assert!(error.is_passing() && chain(&error).contains("Connection refused"), "{}", chain(&error));
    assert_eq!(kubernetes.configured_offers().len(), 2, "jobs wait for the cluster");
    let error = refused(&kubernetes).await;
    assert!(error.is_passing() && chain(&error).contains("cannot be reached to create jobs.batch"));
    assert!(kubernetes.stop("run_1").await.unwrap_err().is_passing());
}

#[tokio::test]
async fn a_stop_deletes_in_the_background_once_and_an_unknown_handle_is_no_error() {
    let server = Server::start().await;
    let kubernetes = provider(&server).await;
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    until("it is listed", async || process(&kubernetes, "run_1").await.is_some()).await;
    kubernetes.stop("run_1").await.unwrap();
    assert_eq!(process(&kubernetes, "run_1").await, None);
    assert_eq!(server.requests("DELETE jobs")[0]["propagationPolicy"], "Background");
    kubernetes.stop("run_1").await.unwrap();
    kubernetes.stop("run_2").await.unwrap();
    // The Job was deleted by another client, and the watch has not reported it yet.
    kubernetes.launch(launch(Program::Trainer, "run_3")).await.unwrap();
    until("it is listed", async || server.get("jobs", "run-3").is_some()).await;
    server.answer("DELETE jobs", Answer::Status(404, recorded("not-found-404")["body"].clone(), None));
    kubernetes.stop("run_3").await.unwrap();
}

#[tokio::test]
async fn kueue_releases_the_jobs_of_a_queue() {
    let server = Server::start().await;
    let kubernetes = provider_at(&server.address.to_string(), &json!({"local_queue": "gpus"})).await;
    kubernetes.launch(launch(Program::Trainer, "run_1")).await.unwrap();
    let mut job = server.get("jobs", "run-1").unwrap();
    assert_eq!(job["spec"]["suspend"], true);
    assert_eq!(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "gpus");
    assert!(server.requests("POST jobs")[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"].is_null());
    until("it waits", async || {
        pending(&kubernetes, "run_1").await.is_some_and(|why| why == "Waiting in the Kueue queue gpus")
    })
    .await;
    job["spec"]["suspend"] = json!(false);
    server.put("jobs", job);
    until("it is admitted", async || {
        pending(&kubernetes, "run_1").await.is_some_and(|why| why.contains("create the pod"))
    })
    .await;
}
