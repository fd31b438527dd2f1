//! Jobs on a real Slurm cluster of one node with two fake GPUs, which `scripts/slurm-test` starts.
//!
//! Each test is a flow of a whole platform, whose only provider is the cluster: `attune-trainer` and `attune-serving`
//! run as Slurm jobs.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use attune_tests::{platform::Platform, tiny};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    house::{create, job},
    recovery::story,
};

/// The longest time without a report, in seconds.
const LEASE: u64 = 8;

/// The longest wait for a job's end.
const END: Duration = Duration::from_secs(180);

/// Runs a command of the cluster, and returns its output.
fn slurm(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Returns the folder of the cluster.
#[expect(clippy::disallowed_methods, reason = "scripts/slurm-test passes the cluster in this variable")]
fn folder() -> String {
    let conf = std::env::var("SLURM_CONF").expect("run by scripts/slurm-test, which starts a cluster");
    conf.strip_suffix("/slurm.conf").unwrap().to_owned()
}

/// Cancels all jobs of the cluster, such as those of a test that failed, and waits until none is left.
fn empty() {
    slurm("scancel", &["--user=root"]);
    for _ in 0..300 {
        if slurm("squeue", &["--noheader"]).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Starts a platform with an empty cluster as its only provider, and returns it with the ID of a training file.
fn platform(minutes: u32, rows: usize) -> (Platform, String) {
    empty();
    let settings = format!(
        "[leases]\nheartbeat_seconds = 1\nstale_after_seconds = {LEASE}\n\
         [[provider]]\nkind = 'slurm'\nslurm_conf = '{}/slurm.conf'\npartition = 'main'\nlisten_ip = '127.0.0.1'\n\
         time_limit_minutes = {minutes}\npoll_seconds = 1\ncommand_seconds = 3\n\
         [[provider.offer]]\nname = 'fake'\nmemory_bytes = 2147483648\nthreads = 1\ngres = 'gpu:1'\nslots = 2\n",
        folder()
    );
    let platform = Platform::start_with(&settings).unwrap();
    platform.import_tiny().unwrap();
    let file = platform.upload(&tiny::rows(rows)).unwrap();
    (platform, file)
}

/// Returns a job of many steps, with many checkpoints.
fn long_job(file: &str, epochs: u32) -> Value {
    let mut job = job(file);
    job["method"]["supervised"]["hyperparameters"]["n_epochs"] = json!(epochs);
    job["trainer"]["checkpoint_every_steps"] = json!(10);
    job
}

async fn steps_done(platform: &Platform, id: &str, least: u64) {
    let enough = |job: &Value| job["steps_done"].as_u64().unwrap_or(0) >= least || job["finished_at"].is_number();
    platform.job_until(id, Duration::from_secs(90), enough).await.unwrap();
}

/// Checks that the job succeeds after `attempts` runs, with all of its steps.
async fn succeeds(platform: &Platform, id: &str, attempts: u64) -> Value {
    let done = platform.ended(id, END).await.unwrap();
    assert_eq!(done["status"], "succeeded", "{done}\n{}", platform.folder().log());
    assert_eq!(done["attempts"].as_u64(), Some(attempts), "{done}\n{:?}", story(platform, id).await);
    assert_eq!(done["steps_done"], done["total_steps"], "{done}");
    done
}

async fn cancel(platform: &Platform, id: &str, within: Duration) {
    let path = format!("/v1/fine_tuning/jobs/{id}/cancel");
    let (status, view) = platform.call(Method::POST, &path, None).await.unwrap();
    assert_eq!(status, 200, "{view}");
    let done = platform.ended(id, within).await.unwrap();
    assert_eq!(done["status"], "cancelled", "{done}");
}

/// Returns the IDs and states of the cluster's jobs with this prefix of their names.
fn jobs(prefix: &str) -> Vec<(String, String)> {
    let all = slurm("squeue", &["--noheader", "--states=all", "--format=%i %j %T"]);
    let job = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (id, name, state) = (words.next()?, words.next()?, words.next()?);
        name.starts_with(prefix).then_some((id, state))
    };
    all.lines().filter_map(job).collect()
}

/// Returns the ID of the only trainer's Slurm job that runs.
fn running() -> String {
    let running: Vec<_> = jobs("run_").into_iter().filter(|(_, state)| state == "RUNNING").collect();
    assert_eq!(running.len(), 1, "{running:?}");
    running[0].0.clone()
}

/// Waits until no job of the cluster waits or runs, after the test has ended its own.
async fn nothing_left(platform: Platform) {
    let live = |prefix: &str| {
        let all = jobs(prefix).into_iter();
        let live: Vec<_> = all.filter(|(_, state)| ["PENDING", "RUNNING", "COMPLETING"].contains(&&**state)).collect();
        live
    };
    for _ in 0..300 {
        if live("run_").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(live("run_"), [], "{}", platform.folder().log());
    platform.stop(Signal::SIGTERM).unwrap();
    for (id, _) in live("replica_") {
        slurm("scancel", &[&id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_job_is_trained_and_its_adapter_answers_on_the_cluster() {
    let (platform, file) = platform(60, 24);
    let id = create(&platform, long_job(&file, 40)).await;
    steps_done(&platform, &id, 5).await;
    let slurm_id = running();
    let shown = slurm("scontrol", &["show", "job", &slurm_id]);
    for wanted in ["MinMemoryNode=2G", "Requeue=0", "TimeLimit=01:00:00", "gres:gpu:1", "Comment=attune slurm http"] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    // The script holds the token: other users cannot read it.
    let script = slurm("scontrol", &["write", "batch_script", &slurm_id, "-"]);
    assert!(script.contains("export ATTUNE_RUN_TOKEN='"), "{script}");
    let of_another = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "scontrol", "write", "batch_script", &slurm_id, "-"])
        .output()
        .unwrap();
    // It reports the refusal with exit status 0.
    let refusal = String::from_utf8_lossy(&of_another.stderr);
    assert!(refusal.contains("Invalid user id") && of_another.stdout.is_empty(), "{refusal}");

    let done = succeeds(&platform, &id, 1).await;
    let chat = json!({"model": done["fine_tuned_model"], "max_tokens": 4,
        "messages": [{"role": "user", "content": "question 1"}]});
    let (status, answer) = platform.call(Method::POST, "/v1/chat/completions", Some(chat)).await.unwrap();
    assert_eq!(status, 200, "{answer}\n{}", platform.folder().log());
    assert!(jobs("replica_").iter().any(|(_, state)| state == "RUNNING"), "{:?}", jobs("replica_"));
    assert!(platform.descendants().unwrap().iter().all(|(_, command)| !command.contains("attune-serving")));
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_running_job_is_cancelled_on_the_cluster() {
    let (platform, file) = platform(60, 24);
    let id = create(&platform, long_job(&file, 100)).await;
    steps_done(&platform, &id, 5).await;
    cancel(&platform, &id, Duration::from_secs(30)).await;
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_killed_trainer_has_its_signal_in_the_events_and_is_followed_by_another() {
    let (platform, file) = platform(60, 24);
    let id = create(&platform, long_job(&file, 60)).await;
    steps_done(&platform, &id, 15).await;
    let pids = slurm("scontrol", &["listpids", &running()]);
    let trainer: i32 = pids.lines().nth(1).and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap();
    kill(Pid::from_raw(trainer), Signal::SIGKILL).unwrap();
    succeeds(&platform, &id, 2).await;
    let story = story(&platform, &id).await;
    assert!(story.iter().any(|message| message.contains("(signal: 9)")), "{story:?}");
    assert!(story.iter().any(|message| message.contains("resumed from the last checkpoint")), "{story:?}");
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_job_that_waits_in_the_queue_of_the_cluster_shows_the_reason_and_is_not_lost() {
    let (platform, file) = platform(60, 24);
    let blocker =
        slurm("sbatch", &["--parsable", "--gres=gpu:2", "--output=/dev/null", "--chdir=/", "--wrap", "sleep 600"]);
    let id = create(&platform, job(&file)).await;
    let says_why = |job: &Value| job["waiting_reason"] == "Waiting in the queue of Slurm: the resources are in use";
    platform.job_until(&id, Duration::from_secs(30), says_why).await.unwrap();
    let waits = create(&platform, job(&file)).await;
    let submitted = |job: &Value| job["waiting_reason"].as_str().is_some_and(|why| why.starts_with("Waiting in"));
    platform.job_until(&waits, Duration::from_secs(30), submitted).await.unwrap();
    cancel(&platform, &waits, Duration::from_secs(20)).await;
    tokio::time::sleep(Duration::from_secs(2 * LEASE)).await;
    slurm("scancel", &[&blocker]);
    let done = succeeds(&platform, &id, 1).await;
    assert_eq!(done["waiting_reason"], Value::Null, "{done}");
    let waited = story(&platform, &id).await.iter().filter(|message| message.starts_with("Waiting in")).count();
    // One event for each kind of reason: Slurm may not have considered the job at first.
    assert!((1..=2).contains(&waited), "{waited}");
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_run_that_reaches_its_time_limit_is_followed_by_one_that_continues() {
    let (platform, file) = platform(3, 2000);
    let mut long = long_job(&file, 100);
    long["method"]["supervised"]["hyperparameters"]["batch_size"] = json!(1);
    let id = create(&platform, long).await;
    let next = |job: &Value| job["attempts"].as_u64() == Some(2) && job["status"] == "running";
    platform.job_until(&id, Duration::from_secs(240), next).await.unwrap();
    let story = story(&platform, &id).await;
    assert!(story.iter().any(|message| message.contains("interrupted after step")), "{story:?}");
    cancel(&platform, &id, Duration::from_secs(30)).await;
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_scheduler_that_is_killed_or_stopped_finds_its_trainer_again() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (platform, file) = platform(60, 24);
        let id = create(&platform, long_job(&file, 100)).await;
        steps_done(&platform, &id, 5).await;
        let processes = platform.descendants().unwrap();
        let schedulers: Vec<_> = processes.iter().filter(|(_, command)| command.contains("attune-scheduler")).collect();
        assert_eq!(schedulers.len(), 1, "{processes:?}");
        let trainer = running();
        kill(Pid::from_raw(schedulers[0].0), signal).unwrap();
        succeeds(&platform, &id, 1).await;
        nothing_left(platform).await;
        assert!(jobs("run_").contains(&(trainer, "COMPLETED".into())), "{:?}", jobs("run_"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_job_whose_node_fails_waits_for_it_and_continues() {
    let (platform, file) = platform(60, 24);
    let node = slurm("sinfo", &["--noheader", "--format=%n"]);
    let id = create(&platform, long_job(&file, 60)).await;
    steps_done(&platform, &id, 15).await;
    let name = format!("nodename={node}");
    slurm("scontrol", &["update", &name, "state=down", "reason=test"]);
    let waits = |job: &Value| {
        let why = job["waiting_reason"].as_str().unwrap_or("");
        job["attempts"].as_u64() == Some(2) && why.starts_with("Waiting in the queue of Slurm")
    };
    let waited = platform.job_until(&id, Duration::from_secs(60), waits).await;
    slurm("scontrol", &["update", &name, "state=resume"]);
    waited.unwrap();
    succeeds(&platform, &id, 2).await;
    let story = story(&platform, &id).await;
    // A trainer that had the time to report its SIGTERM was interrupted; else the cluster says why it ended.
    let ways = ["its node failed", "interrupted after step"];
    assert!(story.iter().any(|message| ways.iter().any(|way| message.contains(way))), "{story:?}");
    nothing_left(platform).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm cluster: make slurm-test"]
async fn a_controller_that_does_not_answer_costs_no_run_and_new_jobs_wait_for_it() {
    let (platform, file) = platform(60, 24);
    let pid = std::fs::read_to_string(format!("{}/slurmctld.pid", folder())).unwrap();
    let controller = Pid::from_raw(pid.trim().parse().unwrap());
    let id = create(&platform, long_job(&file, 100)).await;
    steps_done(&platform, &id, 5).await;
    kill(controller, Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await; // until an answer of `squeue` is overdue
    let second = create(&platform, job(&file)).await;
    tokio::time::sleep(Duration::from_secs(2 * LEASE)).await;
    let (_, waiting) = platform.call(Method::GET, &format!("/v1/fine_tuning/jobs/{second}"), None).await.unwrap();
    kill(controller, Signal::SIGCONT).unwrap();
    assert_eq!(waiting["attempts"], 0, "{waiting}");
    succeeds(&platform, &id, 1).await;
    succeeds(&platform, &second, 1).await;
    nothing_left(platform).await;
}
