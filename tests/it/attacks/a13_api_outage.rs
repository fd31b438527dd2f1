//! The API, the database or the scheduler is suspended for several leases, or is restarted. No live run or replica is
//! declared lost, and no job fails.

use std::time::Duration;

use attune_tests::{platform::Platform, tiny};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::create;

/// Settings with leases that are short enough for a test.
const SETTINGS: &str = "[leases]\nheartbeat_seconds = 1\nstale_after_seconds = 5\n";

/// The length of an outage; longer than all attempts of a job, if each is declared lost after one lease.
const OUTAGE: Duration = Duration::from_secs(17);

/// A platform with a running job that has no checkpoint yet, and a replica that has served a request.
struct Busy {
    platform: Platform,
    job: String,
    /// The process IDs of the trainer and the serving process.
    workers: Vec<i32>,
}

fn pids(platform: &Platform, name: &str) -> Vec<i32> {
    let all = platform.descendants().unwrap();
    all.into_iter().filter(|(_, command)| command.contains(name)).map(|(pid, _)| pid).collect()
}

impl Busy {
    async fn start() -> Self {
        let platform = Platform::start_with(SETTINGS).unwrap();
        platform.import_tiny().unwrap();
        let file = platform.upload(&tiny::rows(800)).unwrap();
        let job = create(
            &platform,
            json!({"model": "tiny", "training_file": file, "hyperparameters": {"n_epochs": 100, "batch_size": 2},
                "trainer": {"checkpoint_every_steps": 1_000_000}}),
        )
        .await;
        let busy = Self { platform, job, workers: Vec::new() };
        busy.chat().await;
        busy.steps_beyond(5).await;
        let mut workers = pids(&busy.platform, "attune-trainer");
        workers.extend(pids(&busy.platform, "attune-serving"));
        assert_eq!(workers.len(), 2, "{}", busy.platform.folder().log());
        Self { workers, ..busy }
    }

    async fn chat(&self) {
        let ask = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
        let (status, said) = self.platform.call(Method::POST, "/v1/chat/completions", Some(ask)).await.unwrap();
        assert_eq!(status, 200, "{said}\n{}", self.platform.folder().log());
    }

    async fn steps_beyond(&self, steps: u64) -> Value {
        let enough = |job: &Value| job["steps_done"].as_u64().unwrap_or(0) > steps || job["finished_at"].is_number();
        self.platform.job_until(&self.job, Duration::from_secs(60), enough).await.unwrap()
    }

    /// Suspends these processes for [`OUTAGE`].
    async fn stands_still(&self, pids: &[i32]) {
        assert!(!pids.is_empty());
        let all = |signal| pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
        all(Signal::SIGSTOP);
        tokio::time::sleep(OUTAGE).await;
        all(Signal::SIGCONT);
    }

    /// Checks that a lease later the job is at the same attempt and progresses, and that the same processes run.
    async fn is_as_before(&self) {
        let then = self.platform.job_until(&self.job, Duration::from_secs(30), |_| true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        let job = self.steps_beyond(then["steps_done"].as_u64().unwrap()).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("running"), &json!(1)), "{job}");
        let there = self.platform.descendants().unwrap();
        for worker in &self.workers {
            assert!(there.iter().any(|(pid, _)| pid == worker), "{worker} was ended\n{}", self.platform.folder().log());
        }
        self.chat().await;
    }

    /// Returns the number of jobs that failed, and stops the platform.
    async fn end(self) -> usize {
        let (status, jobs) = self.platform.call(Method::GET, "/v1/fine_tuning/jobs", None).await.unwrap();
        assert_eq!(status, 200, "{jobs}");
        let failed = jobs["data"].as_array().unwrap().iter().filter(|job| job["status"] == "failed").count();
        let cancel = format!("/v1/fine_tuning/jobs/{}/cancel", self.job);
        self.platform.call(Method::POST, &cancel, None).await.unwrap();
        self.platform.stop(Signal::SIGTERM).unwrap();
        failed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a13_an_api_that_stalls_or_is_restarted_fails_no_job() {
    let busy = Busy::start().await;
    let api = pids(&busy.platform, "attune-api");
    busy.stands_still(&api).await;
    busy.is_as_before().await;
    kill(Pid::from_raw(api[0]), Signal::SIGKILL).unwrap();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if matches!(busy.platform.call(Method::GET, "/v1/models", None).await, Ok((200, _))) {
            break;
        }
    }
    busy.is_as_before().await;
    let failed = busy.end().await;
    println!("FIGURE jobs_failed_by_api_outage {failed}");
    assert_eq!(failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_a29_a_database_or_a_scheduler_that_stalls_ends_no_run() {
    let busy = Busy::start().await;
    busy.stands_still(&pids(&busy.platform, "postgres")).await;
    busy.is_as_before().await;
    busy.stands_still(&pids(&busy.platform, "attune-scheduler")).await;
    busy.is_as_before().await;
    assert_eq!(busy.end().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_hangs_while_the_api_answers_is_declared_lost_all_the_same() {
    let busy = Busy::start().await;
    let hung = pids(&busy.platform, "attune-trainer");
    kill(Pid::from_raw(hung[0]), Signal::SIGSTOP).unwrap();
    let job = busy
        .platform
        .job_until(&busy.job, Duration::from_secs(120), |job| job["attempts"].as_u64() > Some(1))
        .await
        .unwrap();
    assert_eq!(job["attempts"], 2, "{job}");
    busy.end().await;
}
