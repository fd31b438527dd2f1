//! Tests with scripted commands: answers that cannot be used, and states that a test cluster cannot reach.
//! `tests/it/slurm.rs` is about a real cluster.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use attune_domain::{
    bytes::Bytes,
    offer::OfferDevice,
    run::process::{EndCause, WaitKind},
};
use attune_process::error_chain::chain;
use serde_json::{Value, json};

use super::{
    job::{Job, Limits, Status},
    provider::Slurm,
};
use crate::{
    config::slurm::SlurmConfig,
    providers::provider::{Launch, Process, Program, Provider, Resources, Wait},
};

const URL: &str = "http://127.0.0.1:1";

/// Returns a provider whose commands are shell scripts in `folder`.
fn cluster(folder: &Path) -> Slurm {
    cluster_with_limit(folder, 20)
}

/// As [`cluster`], with this time limit for each command.
fn cluster_with_limit(folder: &Path, seconds: u64) -> Slurm {
    let config: SlurmConfig = serde_json::from_value(json!({
        "work_dir": folder, "binaries_dir": folder, "commands_dir": folder, "partition": "gpu",
        "command_seconds": seconds, "poll_seconds": 1,
        "offer": [{"name": "a100", "memory_bytes": 64 << 20, "threads": 2, "slots": 2}],
    }))
    .unwrap();
    Slurm::new(&config, URL).unwrap()
}

fn command(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn launch(offer: &str) -> Launch {
    let resources = Resources { offer: offer.into(), memory: Bytes::mib(1), threads: 2 };
    Launch { program: Program::Trainer, name: "run_1".into(), token: "secret".to_owned().into(), resources }
}

/// Returns a job of this user and this platform, as Slurm 22.05 prints it.
fn job(state: &str) -> Value {
    use std::os::unix::fs::MetadataExt;
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    json!({"job_id": 7, "name": "run_1", "comment": format!("attune slurm {URL}"), "user_id": user, "job_state": state,
        "state_reason": "None", "exit_code": 0, "start_time": 100, "end_time": 200})
}

fn status(job: Value) -> Status {
    let job: Job = serde_json::from_value(job).unwrap();
    job.status(Limits { minutes: 10, notice_seconds: 120 })
}

/// Returns the cause and the message of a job that has ended.
fn end(job: Value) -> (EndCause, String) {
    match status(job) {
        Status::Ended(ended) => (ended.cause, ended.message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn limit_an_answer_that_cannot_be_used_is_an_error_of_the_provider() {
    let folder = tempfile::tempdir().unwrap();
    for (script, seconds, said) in [
        ("echo '<html>'", 20, "the answer of squeue cannot be read: expected value"),
        ("echo '{\"jobs\": [{\"job_id\": 1}]}'", 20, "the answer of squeue cannot be read: missing field `job_state`"),
        (
            "echo 'slurm_load_jobs error: Unable to contact\tslurm controller' >&2; exit 1",
            20,
            "squeue ended with exit status",
        ),
        ("sleep 60", 1, "squeue did not answer within 1 s"),
        ("yes 0123456789 | head -c 80000000", 20, "squeue printed more than 67108864 bytes"),
    ] {
        let slurm = cluster_with_limit(folder.path(), seconds);
        command(folder.path(), "squeue", script);
        let since = Instant::now();
        let error = slurm.list().await.unwrap_err();
        assert!(chain(&error).starts_with(&format!("listing the Slurm jobs failed: {said}")), "{}", chain(&error));
        assert!(error.is_passing() && since.elapsed() < Duration::from_secs(seconds + 9));
        // Jobs wait for the cluster, and none is refused.
        let error = slurm.offers().await.unwrap_err();
        assert!(chain(&error).starts_with(&format!("listing the Slurm jobs failed: {said}")), "{}", chain(&error));
        let known = slurm.configured_offers();
        assert_eq!((known.len(), known[1].memory), (2, Bytes(64 << 20)));
    }
    let error = cluster(&folder.path().join("missing")).list().await.unwrap_err();
    assert!(chain(&error).contains("squeue cannot be started: No such file"), "{}", chain(&error));
}

#[tokio::test]
async fn jobs_of_other_platforms_and_users_are_neither_listed_nor_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let with = |key: &str, value: Value| {
        let mut other = job("RUNNING");
        other[key] = value;
        other
    };
    let others = [
        with("comment", json!("attune slurm http://other")),
        with("user_id", json!(4_000_000)),
        with("comment", Value::Null),
    ];
    let answer = |jobs: &[Value]| {
        std::fs::write(folder.path().join("answer"), json!({"jobs": jobs}).to_string()).unwrap();
    };
    command(folder.path(), "squeue", &format!("cat {}/answer", folder.path().display()));
    command(folder.path(), "scancel", &format!("echo $1 >>{}/cancelled", folder.path().display()));
    let slurm = cluster(folder.path());
    answer(&others);
    slurm.stop("run_1").await.unwrap();
    assert_eq!(slurm.list().await.unwrap(), []);
    assert!(!folder.path().join("cancelled").exists());

    answer(&[job("RUNNING")]);
    slurm.stop("run_1").await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("cancelled")).unwrap(), "7\n");
    let running = Process { handle: "run_1".into(), pending: None, ended: None };
    assert_eq!(slurm.list().await.unwrap(), [running], "it is still ending");
    answer(&[job("CANCELLED")]);
    slurm.stop("run_1").await.unwrap();
    assert_eq!(slurm.list().await.unwrap(), []);
    assert_eq!(std::fs::read_to_string(folder.path().join("cancelled")).unwrap(), "7\n", "an ended job");
}

#[tokio::test]
async fn an_answer_that_was_requested_before_a_submission_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    // The first query begins before the submission and ends after it.
    command(
        folder.path(),
        "squeue",
        &format!("if [ -e {path}/submitted ]; then cat {path}/answer; else sleep 1; echo '{{\"jobs\": []}}'; fi"),
    );
    command(folder.path(), "sbatch", &format!("cat >/dev/null; touch {path}/submitted; echo 7"));
    std::fs::write(folder.path().join("answer"), json!({"jobs": [job("RUNNING")]}).to_string()).unwrap();
    let slurm = cluster(folder.path());
    let submit = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        slurm.launch(launch("a100/2")).await.unwrap()
    };
    let (listed, handle) = tokio::join!(slurm.list(), submit);
    assert_eq!((listed.unwrap().len(), handle.as_str()), (0, "run_1"));
    let handles: Vec<_> = slurm.list().await.unwrap().into_iter().map(|process| process.handle).collect();
    assert_eq!(handles, ["run_1"], "the empty answer is older than the submission");
}

#[tokio::test]
async fn a_stop_uses_the_last_answer_and_an_ended_job_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    std::fs::write(folder.path().join("answer"), json!({"jobs": [job("RUNNING")]}).to_string()).unwrap();
    command(folder.path(), "squeue", &format!("echo >>{path}/queries; cat {path}/answer"));
    command(folder.path(), "scancel", "echo 'Job/step already completing or completed' >&2; exit 1");
    let slurm = cluster(folder.path());
    let queries = || std::fs::read_to_string(folder.path().join("queries")).unwrap().len();
    assert_eq!((slurm.list().await.unwrap().len(), queries()), (1, 1));
    assert!(slurm.stop("run_1").await.is_err(), "it still runs");
    assert_eq!(queries(), 2, "the stop itself used the last answer");
    std::fs::write(folder.path().join("answer"), json!({"jobs": [job("COMPLETED")]}).to_string()).unwrap();
    slurm.stop("run_1").await.unwrap();
    assert_eq!(slurm.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_submission_has_the_offers_resources_and_no_secret_among_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    command(
        folder.path(),
        "sbatch",
        &format!("printf '%s\\n' \"$@\" >{path}/arguments; env >{path}/env; cat >{path}/script; echo 7"),
    );
    let slurm = cluster(folder.path());
    assert_eq!(slurm.launch(launch("a100/2")).await.unwrap(), "run_1");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let arguments = read("arguments");
    for one in ["--job-name=run_1", "--mem=64M", "--cpus-per-task=2", "--no-requeue", "--signal=B:TERM@120"] {
        assert!(arguments.lines().any(|line| line == one), "{one}: {arguments}");
    }
    assert!(!arguments.contains("secret") && !read("env").contains("secret") && read("script").contains("secret"));
    assert!(!read("env").contains("CARGO"), "the scheduler's environment is not passed on");

    command(folder.path(), "sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1");
    let error = slurm.launch(launch("a100/2")).await.unwrap_err();
    let said = "starting attune-trainer failed: sbatch ended with exit status: 1: sbatch: error: Invalid account";
    assert_eq!((chain(&error).as_str(), error.is_passing()), (said, true));
    let error = slurm.launch(launch("h100")).await.unwrap_err();
    assert!(chain(&error).contains("has no offer `h100` any more"), "{}", chain(&error));
}

/// Slurm 22.05 and 23.11 print these for a job that `squeue` lists no more.
#[tokio::test]
async fn the_end_of_a_job_that_slurm_lists_no_more_is_read_from_its_accounting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    command(folder.path(), "squeue", "echo '{\"jobs\": []}'");
    command(folder.path(), "sacct", &format!("printf '%s\\n' \"$@\" >{path}/arguments; cat {path}/record"));
    let slurm = cluster(folder.path());
    let number = |number: i64| json!({"set": true, "infinite": false, "number": number});
    let record = |job_id: u32, name: &str, state: Value, exit_code: Value| {
        json!({"job_id": job_id, "name": name, "state": {"current": state, "reason": "None"}, "exit_code": exit_code,
            "time": {"start": 100, "end": 200, "elapsed": 100}, "comment": {"job": ""}, "user": "attune"})
    };
    let jobs = [
        record(7, "run_1", json!("FAILED"), json!({"status": "ERROR", "return_code": 3})),
        record(
            8,
            "run_2",
            json!(["OUT_OF_MEMORY"]),
            json!({"status": ["SIGNALED"], "return_code": number(0),
            "signal": {"id": number(9), "name": "KILL"}}),
        ),
        record(9, "run_3", json!(["RUNNING"]), json!({"return_code": number(0)})),
        record(10, "other", json!("COMPLETED"), json!({"return_code": 0})),
    ];
    std::fs::write(folder.path().join("record"), json!({"jobs": jobs, "errors": []}).to_string()).unwrap();
    let names = || ["run_1", "run_2", "run_3"].map(str::to_owned).to_vec();
    assert_eq!(slurm.list().await.unwrap(), []);
    let recorded = slurm.recorded(names()).await.unwrap().into_iter();
    let ends: Vec<_> = recorded.map(|one| (one.handle, one.ended.unwrap().cause)).collect();
    assert_eq!(ends, [("run_1".into(), EndCause::Program), ("run_2".into(), EndCause::OutOfMemory)]);
    let arguments = std::fs::read_to_string(folder.path().join("arguments")).unwrap();
    assert!(arguments.contains("--name=run_1,run_2,run_3\n") && arguments.contains("--starttime=now-30days\n"));

    command(folder.path(), "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1");
    let error = slurm.recorded(names()).await.unwrap_err();
    assert!(chain(&error).contains("Slurm accounting storage is disabled"), "{}", chain(&error));
}

#[tokio::test]
async fn an_offer_with_gpus_has_their_device_and_requests_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    command(path, "sbatch", &format!("printf '%s\\n' \"$@\" >{0}/arguments; cat >/dev/null; echo 7", path.display()));
    let gpu = json!({"product": "NVIDIA-L4", "count": 2, "memory_bytes": 1u64 << 34});
    let config: SlurmConfig = serde_json::from_value(json!({
        "work_dir": path, "binaries_dir": path, "commands_dir": path, "partition": "gpu",
        "offer": [{"name": "a100", "memory_bytes": 64 << 20, "threads": 2, "gpu": gpu, "spot": true, "region": "eu",
            "usd_per_hour": 0.5}],
    }))
    .unwrap();
    config.check().unwrap();
    let slurm = Slurm::new(&config, URL).unwrap();
    let offer = &slurm.configured_offers()[0];
    let device = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 2, memory: Bytes(1 << 34) };
    assert_eq!((&offer.device, offer.spot, offer.region.as_deref()), (&device, true, Some("eu")));
    slurm.launch(launch("a100")).await.unwrap();
    let arguments = std::fs::read_to_string(path.join("arguments")).unwrap();
    assert!(arguments.lines().any(|line| line == "--gres=gpu:NVIDIA-L4:2"), "{arguments}");
}

#[tokio::test]
async fn each_slot_has_its_port_for_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    command(path, "sbatch", &format!("cat >{}/script; echo 7", path.display()));
    let offer = |name: &str, slots: u32| json!({"name": name, "memory_bytes": 64 << 20, "threads": 2, "slots": slots});
    let config: SlurmConfig = serde_json::from_value(json!({
        "work_dir": path, "binaries_dir": path, "commands_dir": path, "partition": "gpu", "metrics_port": 9500,
        "listen_ip": "10.0.0.7", "offer": [offer("a100", 2), offer("cpu", 1), offer("l4", 3)],
    }))
    .unwrap();
    config.check().unwrap();
    let slurm = Slurm::new(&config, URL).unwrap();
    for (slot, port) in [("a100/1", 9500), ("a100/2", 9501), ("cpu", 9502), ("l4/1", 9503), ("l4/3", 9505)] {
        slurm.launch(Launch { program: Program::Serving, ..launch(slot) }).await.unwrap();
        let script = std::fs::read_to_string(path.join("script")).unwrap();
        assert!(script.contains(&format!(" --metrics-listen 10.0.0.7:{port} ")), "{slot}: {script}");
    }
}

#[test]
fn an_end_has_its_cause() {
    use EndCause::{Deadline, Interrupted, NodeFailed, NotStarted, OutOfMemory, Preempted, Program, Stopped};
    for (state, cause, said) in [
        ("OUT_OF_MEMORY", OutOfMemory, "more memory than it had requested"),
        ("NODE_FAIL", NodeFailed, "its node failed"),
        ("BOOT_FAIL", NodeFailed, "could not be started"),
        ("PREEMPTED", Preempted, "preempted"),
        ("CANCELLED", Stopped, "by an operator"),
        ("TIMEOUT", Deadline, "its time limit of 10 minutes"),
        ("COMPLETED", Program, "(exit status: 0)"),
    ] {
        let (found, message) = end(job(state));
        assert!(found == cause && message.contains(said), "{state}: {found:?} {message}");
    }
    let failed = |exit_code: Value, end_time: i64| {
        let mut failed = job("FAILED");
        (failed["exit_code"], failed["end_time"]) = (exit_code, json!(end_time));
        end(failed)
    };
    assert_eq!(failed(json!(3 << 8), 200).1, "the Slurm job ended (exit status: 3)");
    assert!(failed(json!(9), 200).1.contains("killed (signal: 9)"));
    assert_eq!(failed(json!(127 << 8), 200).0, NotStarted);
    assert_eq!(failed(json!(75 << 8), 200), (Interrupted, "the Slurm job was interrupted by SIGTERM".into()));
    assert_eq!(failed(json!(15), 200).1, "the Slurm job ended (signal: 15)");
    let noticed = failed(json!(15), 570);
    assert!(noticed.0 == Deadline && noticed.1.contains("time limit"), "the signal that precedes the limit");
}

#[test]
fn a_job_that_does_not_run_has_a_reason_and_an_unknown_state_runs() {
    let pending = |state: &str, reason: &str| {
        let mut pending = job(state);
        pending["state_reason"] = json!(reason);
        status(pending)
    };
    use WaitKind::{Held, NodeStarting, Queued, Quota, Unschedulable};
    let waits =
        |kind, reason: &str| Status::Pending(Wait::new(kind, format!("Waiting in the queue of Slurm: {reason}")));
    assert_eq!(pending("PENDING", "Resources"), waits(Unschedulable, "the resources are in use"));
    assert_eq!(pending("PENDING", "Priority"), waits(Queued, "other jobs are ahead"));
    assert_eq!(pending("PENDING", "JobHeldUser"), waits(Held, "the job is held"));
    assert_eq!(pending("PENDING", "PartitionDown"), waits(Unschedulable, "the partition is down"));
    for limit in ["QOSMaxGRESPerUser", "AssocGrpCpuLimit", "PartitionTimeLimit"] {
        assert_eq!(pending("PENDING", limit), waits(Quota, limit));
    }
    assert_eq!(pending("PENDING", "<b>node 7"), waits(Queued, "bnode7"));
    assert_eq!(pending("SUSPENDED", "None"), Status::Pending(Wait::new(Held, "Slurm has suspended the job")));
    let starts = Wait::new(NodeStarting, "Waiting for Slurm to start the node");
    assert_eq!(pending("CONFIGURING", "None"), Status::Pending(starts));
    assert_eq!(pending("RUNNING", "None"), Status::Running);
    assert_eq!(pending("COMPLETING", "None"), Status::Running);
    assert_eq!(pending("NEW_IN_A_LATER_RELEASE", "None"), Status::Running);
}

/// Slurm 23.11 prints states as lists, and numbers as objects.
#[test]
fn the_form_of_later_releases_is_read_as_well() {
    let number = |number: i64| json!({"set": true, "infinite": false, "number": number});
    let mut later = job("");
    later["job_state"] = json!(["FAILED"]);
    later["exit_code"] =
        json!({"status": ["ERROR"], "return_code": number(3), "signal": {"id": number(0), "name": ""}});
    (later["start_time"], later["end_time"]) = (number(100), number(200));
    assert_eq!(end(later.clone()).1, "the Slurm job ended (exit status: 3)");
    later["exit_code"]["signal"]["id"] = number(11);
    assert_eq!(end(later.clone()).1, "the Slurm job ended (signal: 11)");
    later["job_state"] = json!(["CANCELLED", "COMPLETING"]);
    assert_eq!(status(later), Status::Running);
}
