//! A platform whose parts the harness starts itself: a PostgreSQL cluster, an object store behind a proxy, the API and
//! the scheduler. Trainers and replicas are the scheduler's.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use attune_tests::{
    object_store::{self, CREDENTIALS},
    platform::{self, answer, client, program, text},
    tiny,
};
use nix::sys::signal::Signal;
use rand::RngExt;
use reqwest::{
    Method, RequestBuilder,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    clock,
    cluster::Cluster,
    disk::Disk,
    processes,
    program::Program,
    proxy::{Mode, Proxy},
    receiver::Receiver,
    settings,
};

/// The API key of the project `default`.
pub(crate) const API_KEY: &str = "sk-attune-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
/// The ports below the ephemeral ones: a port that is free now stays free while the API is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// The longest start of the API, which migrates the schema.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The interval between two checks of a condition.
const POLL: Duration = Duration::from_millis(200);
/// The timeout of a request: the API may be stopped.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// The epochs of the jobs of the storm, of six steps each: long enough for several faults.
pub(crate) const EPOCHS: u32 = 60;

/// The leases of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leases {
    /// The defaults.
    Default,
    /// Short ones, and attempts without a practical limit: the harness kills trainers again and again.
    Short,
}

/// A running platform.
pub(crate) struct Rig {
    // Dropped in this order: the programs first, then the database.
    /// The API.
    pub(crate) api: Program,
    /// The scheduler.
    pub(crate) scheduler: Program,
    /// Another scheduler, which waits for the leadership.
    pub(crate) standby: Option<Program>,
    /// The database.
    pub(crate) cluster: Cluster,
    /// The way to the object store.
    pub(crate) proxy: Proxy,
    /// The receiver of webhooks.
    pub(crate) receiver: Receiver,
    /// The disk of the objects, if it is one of the harness's own.
    pub(crate) disk: Option<Disk>,
    folder: TempDir,
    /// The scheduler's settings.
    settings: String,
    /// The API's address, `http://…`.
    pub(crate) url: String,
    client: reqwest::Client,
}

impl Rig {
    /// Starts a platform with the base model `tiny` and an endpoint for all events.
    pub(crate) async fn start(leases: Leases) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("attune-faults-").tempdir()?;
        let cluster = Cluster::start()?;
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects)?;
        let disk = if settings::kills().is_some() { Disk::mount(&objects)? } else { None };
        let proxy = Proxy::start(&object_store::serve(&objects).await?).await?;
        let receiver = Receiver::start().await?;
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let shared = shared(&cluster, &proxy);
        let api = Program::new("attune-api", folder.path(), &api_settings(&url, &cluster, &shared))?;
        let settings = scheduler_settings(&url, folder.path(), leases, &shared)?;
        let scheduler = Program::new("attune-scheduler", folder.path(), &settings)?;
        let client = client_with_timeout()?;
        let standby = None;
        let mut rig = Self { api, scheduler, standby, cluster, proxy, receiver, disk, folder, settings, url, client };
        rig.ready().await?;
        let model = rig.path("tiny");
        tiny::write(&model, 7)?;
        rig.attune(&["models", "import", text(&model)?, "--name", "tiny"])?;
        rig.attune(&["webhooks", "create", &rig.receiver.url, "--event", "*"])?;
        Ok(rig)
    }

    /// Returns a path in the platform's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the folder of the bucket's objects.
    pub(crate) fn objects(&self) -> PathBuf {
        self.path("objects")
    }

    /// Starts another scheduler, with the first one's settings but for these, and waits until it waits.
    pub(crate) async fn start_standby(&mut self, environment: &[(&'static str, String)]) -> Result<()> {
        let folder = self.path("standby");
        std::fs::create_dir(&folder)?;
        let mut standby = Program::new("attune-scheduler", &folder, &self.settings)?;
        let work_dir = ("ATTUNE_LOCAL__WORK_DIR", text(&folder.join("node"))?.to_owned());
        standby.set_environment(&[environment, &[work_dir]].concat());
        standby.start()?;
        let begun = Instant::now();
        while !standby.log().contains("another scheduler leads; waiting") {
            ensure!(begun.elapsed() < READY_WITHIN, "the other scheduler does not wait:\n{}", standby.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.standby = Some(standby);
        Ok(())
    }

    /// Starts the programs that do not run; returns whether there was one.
    pub(crate) fn keep_up(&mut self) -> Result<bool> {
        let (api, scheduler) = (self.api.start()?, self.scheduler.start()?);
        let standby = self.standby.as_mut().map(Program::start).transpose()?;
        Ok(api || scheduler || standby == Some(true))
    }

    /// Kills the API and the scheduler, and starts them with another environment.
    pub(crate) async fn restart(&mut self, environment: &[(&'static str, String)]) -> Result<()> {
        for program in [&mut self.api, &mut self.scheduler] {
            program.kill()?;
            program.set_environment(environment);
        }
        self.ready().await
    }

    /// Starts the programs that do not run, and waits until the API answers.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.keep_up()?;
            let health = self.client.get(format!("{}/healthz", self.url)).send().await;
            if health.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            ensure!(begun.elapsed() < READY_WITHIN, "the API is not ready:\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the last lines of the programs' logs.
    pub(crate) fn logs(&self) -> String {
        let standby = self.standby.as_ref().map(Program::log).unwrap_or_default();
        format!("api:\n{}\nscheduler:\n{}\nstandby:\n{standby}", self.api.log(), self.scheduler.log())
    }

    /// Runs `attune` with these arguments.
    fn attune(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program("attune")?);
        command.args(arguments).env("ATTUNE_API_URL", &self.url).env("ATTUNE_API_KEY", API_KEY);
        let output = command.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "attune {arguments:?}: {stderr}\n{}", self.logs());
        Ok(())
    }

    /// Sends a request; returns the status and the body.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let call = platform::call(method, format!("{}{path}", self.url), API_KEY, body);
        tokio::time::timeout(REQUEST_WITHIN, call).await.context("no answer in time")?
    }

    /// Returns a request with the API key.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(API_KEY)
    }

    /// Sets the clock of a program to an offset, such as `+3d`.
    pub(crate) fn set_clock(&self, program: &str, offset: &str) -> Result<()> {
        clock::set(self.folder.path(), program, offset)
    }

    /// Uploads a training file, and returns its ID.
    pub(crate) async fn upload(&self, rows: usize) -> Result<String> {
        self.upload_file("fine-tune", tiny::rows(rows)).await
    }

    /// Uploads a JSONL file, and returns its ID.
    pub(crate) async fn upload_file(&self, purpose: &'static str, content: String) -> Result<String> {
        let part = Part::bytes(content.into_bytes()).file_name("rows.jsonl");
        let form = Form::new().text("purpose", purpose).part("file", part);
        let file = answered(self.request(Method::POST, "/v1/files").multipart(form)).await?;
        Ok(file["id"].as_str().context("a file has an ID")?.to_owned())
    }

    /// Creates a job of [`job`]; returns its ID once the API has acknowledged it.
    pub(crate) async fn submit(&self, file: &str, epochs: u32) -> Result<String> {
        let (status, view) = self.call(Method::POST, "/v1/fine_tuning/jobs", Some(job(file, epochs))).await?;
        ensure!(status == 200, "{status}: {view}");
        Ok(view["id"].as_str().context("a job has an ID")?.to_owned())
    }

    /// Returns the number of jobs that have not ended.
    pub(crate) fn unfinished(&self) -> Result<usize> {
        Ok(self.cluster.sql("select count(*) from job where finished_at is null")?.parse()?)
    }

    /// Waits until `wanted`, a condition in SQL, holds, and keeps the programs up meanwhile.
    pub(crate) async fn until(&mut self, wanted: &str, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.holds(wanted)? {
            self.keep_up()?;
            self.check_time(begun, wanted, within)?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits as [`until`](Self::until), and starts no program.
    pub(crate) async fn wait_for(&self, wanted: &str, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.holds(wanted)? {
            self.check_time(begun, wanted, within)?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn holds(&self, wanted: &str) -> Result<bool> {
        Ok(self.cluster.sql(&format!("select {wanted}"))? == "t")
    }

    fn check_time(&self, begun: Instant, wanted: &str, within: Duration) -> Result<()> {
        if begun.elapsed() <= within {
            return Ok(());
        }
        let jobs = self
            .cluster
            .sql("select job_id, state, attempts, steps_done, total_steps, waiting_reason, error_message from job")?;
        anyhow::bail!("not after {within:?}: {wanted}\n{jobs}\n{}", self.logs())
    }

    /// Pauses, resumes or cancels a job.
    pub(crate) async fn change(&self, job: &str, change: &str) -> Result<()> {
        let path = format!("/v1/fine_tuning/jobs/{job}/{change}");
        let (status, view) = self.call(Method::POST, &path, None).await?;
        ensure!(status == 200, "{change}: {status}: {view}");
        Ok(())
    }

    /// Returns the IDs of the processes of `attune-trainer` or `attune-serving`.
    pub(crate) fn processes(&self, program: &str) -> Result<Vec<i32>> {
        processes::of(program, self.folder.path())
    }

    /// Continues all processes that were stopped, heals the object store, and starts what does not run.
    pub(crate) async fn heal(&mut self) -> Result<()> {
        let mut stopped = self.processes("attune-trainer")?;
        stopped.extend(self.processes("attune-serving")?);
        stopped.extend([self.api.id(), self.scheduler.id()].into_iter().flatten());
        for id in stopped {
            processes::signal(id, Signal::SIGCONT);
        }
        self.proxy.set(Mode::Pass);
        self.ready().await
    }
}

/// Sends a request, and returns the body of a successful answer.
pub(crate) async fn answered(request: RequestBuilder) -> Result<Value> {
    let (status, body) = answer(request.send().await?).await?;
    ensure!([200, 201].contains(&status), "{status}: {body}");
    Ok(body)
}

/// Returns the text that a trained model gives, as a job: `epochs` times six steps, and a checkpoint every ten.
fn job(file: &str, epochs: u32) -> Value {
    json!({
        "model": "tiny", "training_file": file, "seed": 7, "suffix": "faults",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}}},
        "adapter": {"rank": 16}, "trainer": {"learning_rate": 0.01, "checkpoint_every_steps": 10},
    })
}

fn client_with_timeout() -> Result<reqwest::Client> {
    drop(client()); // installs the TLS provider
    Ok(reqwest::Client::builder().no_proxy().timeout(REQUEST_WITHIN).build()?)
}

fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port from {PORTS:?} is free")
}

/// Returns the sections that the API and the scheduler share.
fn shared(cluster: &Cluster, proxy: &Proxy) -> String {
    let (id, secret) = CREDENTIALS;
    format!(
        "[object_store]\nendpoint = '{}'\nbucket = 'attune'\naccess_key_id = '{id}'\nsecret_access_key = '{secret}'\n\
         [webhooks]\nsecret_key = '{}'\nallow_loopback = true\n\
         [database]\nurl = '{}'\nmax_connections = 12\n",
        proxy.url,
        "k".repeat(43),
        cluster.url("attune_login"),
    )
}

fn api_settings(url: &str, cluster: &Cluster, shared: &str) -> String {
    let listen = url.trim_start_matches("http://");
    let owner = cluster.url("attune");
    // The section `[database]` is the last of the shared ones.
    format!("listen = '{listen}'\npublic_url = '{url}'\nbootstrap_key = '{API_KEY}'\n{shared}owner_url = '{owner}'\n")
}

fn scheduler_settings(url: &str, folder: &Path, leases: Leases, shared: &str) -> Result<String> {
    let binaries = clock::children(folder)?;
    let leases = match leases {
        Leases::Default => "",
        Leases::Short => "[leases]\nheartbeat_seconds = 1\nstale_after_seconds = 8\nmax_attempts = 100000\n",
    };
    let work_dir = folder.join("node");
    Ok(format!(
        "api_url = '{url}'\n{shared}{leases}[serving]\nidle_seconds = 6\n\
         [local]\nwork_dir = '{}'\nbinaries_dir = '{}'\nthreads = 1\nmax_concurrent_runs = 2\n",
        work_dir.display(),
        binaries.display(),
    ))
}
