//! A real replica: the program `attune-serving`, its platform, and a client.

use std::{path::Path, process::Stdio, time::Instant};

use anyhow::{Context, Result, bail};
use attune_domain::bytes::Bytes;
use tokio::process::{Child, ChildStdin, Command};

use crate::{
    client::Client,
    platform::{Platform, Served, Start},
    setup::Setup,
};

/// The replica's token.
const TOKEN: &str = "bench";

/// A running replica. Dropping it kills the process.
pub(crate) struct Replica {
    child: Child,
    /// Closing it would end the process.
    _stdin: Option<ChildStdin>,
    /// The replica's platform and object store.
    pub(crate) platform: Platform,
    /// The client of the replica.
    pub(crate) client: Client,
    /// The time at which the process was started.
    pub(crate) spawned: Instant,
    /// The times of its start.
    pub(crate) start: Start,
}

impl Replica {
    /// Starts a replica with the disk cache of most measures.
    pub(crate) async fn start(setup: &Setup, served: Served) -> Result<Self> {
        Self::start_in(setup, served, &setup.scratch.join("cache")).await
    }

    /// Starts a replica with the disk cache `cache`, and waits until it listens. Its log is `serving.log` in the
    /// scratch folder.
    pub(crate) async fn start_in(setup: &Setup, served: Served, cache: &Path) -> Result<Self> {
        let platform = Platform::start(served, setup.scratch.join("adapters")).await?;
        let log_path = setup.scratch.join("serving.log");
        let log = std::fs::File::create(&log_path).with_context(|| log_path.display().to_string())?;
        let spawned = Instant::now();
        let mut child = Command::new(&setup.serving)
            .args(["--api-url", platform.url(), "--exit-with-parent", "--log", "warn", "--cache-dir"])
            .arg(cache)
            .env("ATTUNE_REPLICA_TOKEN", TOKEN)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {} failed", setup.serving.display()))?;
        // Taken, because waiting for the child closes it.
        let stdin = child.stdin.take();
        let (address, start) = tokio::select! {
            opened = platform.address() => opened?,
            status = child.wait() => bail!("attune-serving ended ({}); see {}", status?, log_path.display()),
        };
        let client = Client::new(&address, TOKEN)?;
        Ok(Self { child, _stdin: stdin, platform, client, spawned, start })
    }

    /// Returns the resident memory of the process, `VmRSS`.
    pub(crate) fn resident(&self) -> Result<Bytes> {
        let id = self.child.id().context("the replica has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc has no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(Bytes(kib << 10))
    }

    /// Ends the replica, and waits for it.
    pub(crate) async fn stop(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
