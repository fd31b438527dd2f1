//! A PostgreSQL cluster of a test's own, which the test may restart. It listens on a socket in its folder and on no
//! port.
//!
//! The server receives SIGINT when the thread that started it ends, so tests start and restart it on their own thread.

use std::{
    fs::File,
    os::unix::fs::chown,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// The longest start of the server, which includes recovery after a crash.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The roles of docs/CLI.md for an external database.
const ROLES: &str = "create role attune_app nologin; create role attune_platform nologin;
    create role attune_login login noinherit in role attune_app, attune_platform";

/// The server's settings. A commit survives the end of the server, but not that of the machine.
const SETTINGS: [&str; 5] =
    ["listen_addresses=", "fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB"];

/// A running cluster, stopped and removed on drop.
pub(crate) struct Cluster {
    folder: TempDir,
    /// The account of the server; `None`: the current user.
    account: Option<User>,
    server: Option<Child>,
}

impl Cluster {
    /// Creates a cluster with the database `attune`, and starts it.
    pub(crate) fn start() -> Result<Self> {
        // Its socket's path must be short.
        let folder = tempfile::Builder::new().prefix("attune-faults-pg-").tempdir_in("/tmp")?;
        let account = if geteuid().is_root() { Some(unprivileged()?) } else { None };
        if let Some(user) = &account {
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let mut cluster = Self { folder, account, server: None };
        let mut initdb = cluster.command("initdb");
        initdb.args(["-U", "attune", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"]);
        let made = initdb.arg(cluster.folder.path().join("data")).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        cluster.launch()?;
        cluster.query("postgres", "create database attune")?;
        cluster.sql(ROLES)?;
        Ok(cluster)
    }

    /// Returns the database's URL for a role.
    pub(crate) fn url(&self, role: &str) -> String {
        format!("postgres://{role}@localhost/attune?host={}", self.folder.path().display())
    }

    /// Executes a statement as the owner, who sees all rows; returns its output, a line a row.
    pub(crate) fn sql(&self, statement: &str) -> Result<String> {
        self.query("attune", statement)
    }

    /// Returns the rows of a query, each a JSON object.
    pub(crate) fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>> {
        let all = format!("select coalesce(json_agg(row_to_json(found)), '[]') from ({query}) as found");
        serde_json::from_str(&self.sql(&all)?).with_context(|| query.to_owned())
    }

    /// Ends the server with a signal, and starts it again. SIGINT ends its sessions; after SIGQUIT it recovers.
    pub(crate) fn restart(&mut self, signal: Signal) -> Result<()> {
        self.stop(signal)?;
        self.launch()
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(server.id().cast_signed()), signal)?;
            server.wait()?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("postgres.log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        self.server = Some(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        let begun = Instant::now();
        while let Err(why) = self.query("postgres", "select 1") {
            ensure!(begun.elapsed() < READY_WITHIN, "PostgreSQL is not ready after {READY_WITHIN:?}: {why}");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn query(&self, database: &str, statement: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-U", "attune", "-d", database, "-c", statement, "-h"]);
        let output = psql.arg(self.folder.path()).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Returns a command that runs as the server's account, and ends with this thread.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]);
        if let Some(user) = &self.account {
            command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".into()]);
        }
        command.arg("--").arg(program).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.stop(Signal::SIGQUIT);
    }
}

/// Returns the account that PostgreSQL runs as when the test is root, which it refuses to be.
fn unprivileged() -> Result<User> {
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(user);
        }
    }
    anyhow::bail!("there is no user 'postgres' or 'nobody' to run PostgreSQL as")
}
