//! The local provider: each run and each replica is a child process on this machine.
//!
//! A child's standard input is a pipe that this process never writes to. It closes when this process ends, however that
//! happens, and the child then exits (`--exit-with-parent`). So no children are left after a restart of the scheduler.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    offer::Offer,
    run::{EXIT_INTERRUPTED, process::EndCause},
};
use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use tokio::{
    process::{Child, Command},
    sync::{Notify, watch},
};

use crate::{
    config::LocalConfig,
    error::ProviderError,
    providers::{
        logs,
        oom::{self, KernelKills},
        provider::{Ended, Launch, Process, Program, Provider},
    },
};

/// The time that a child has to exit after its input was closed, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The length of an ended child's last output that is copied to the scheduler's log, in bytes.
const TAIL_BYTES: i64 = 1500;

/// The local provider.
pub(crate) struct Local {
    settings: Settings,
    children: Mutex<HashMap<String, Entry>>,
    /// Notified when a child ends, so that the reconciler runs immediately.
    ended: Arc<Notify>,
}

struct Settings {
    name: String,
    api_url: String,
    work_dir: PathBuf,
    binaries: PathBuf,
    memory: Bytes,
    threads: u32,
    max_concurrent_runs: usize,
    micro_usd_per_hour: u64,
}

struct Entry {
    /// Set to stop the child.
    stop: watch::Sender<bool>,
    /// The end of the child, once it has ended.
    ended: watch::Receiver<Option<Ended>>,
}

impl Local {
    /// Creates the provider from the configuration, and its folders.
    ///
    /// # Errors
    /// A folder cannot be created, or the path of this program cannot be determined.
    pub(crate) fn new(config: &LocalConfig, api_url: &str, ended: Arc<Notify>) -> std::io::Result<Self> {
        for folder in ["cache", "logs"] {
            std::fs::create_dir_all(config.work_dir.join(folder))?;
        }
        let settings = Settings {
            name: config.name.clone(),
            api_url: api_url.to_owned(),
            work_dir: config.work_dir.clone(),
            binaries: config.binaries()?,
            memory: config.memory(),
            threads: config.thread_count(),
            max_concurrent_runs: config.max_concurrent_runs,
            micro_usd_per_hour: config.micro_usd_per_hour(),
        };
        Ok(Self { settings, children: Mutex::default(), ended })
    }

    fn start(&self, launch: &Launch) -> Result<String, ProviderError> {
        let program = launch.program.name();
        let failed =
            |cause: std::io::Error| ProviderError { action: format!("starting {program}"), cause: cause.into() };
        let log_path = self.settings.work_dir.join("logs").join(format!("{}.log", launch.name));
        let mut command = self.settings.command(program, launch);
        // A log that cannot be written, such as on a full disk, must not prevent the launch.
        match logs::open(&log_path).and_then(|log| Ok((log.try_clone()?, log))) {
            Ok((out, err)) => command.stdout(out).stderr(err),
            Err(why) => {
                tracing::warn!(handle = launch.name, %why,
                    "{program} has no log: {} cannot be created", log_path.display());
                command.stdout(Stdio::null()).stderr(Stdio::null())
            }
        };
        let child = command.spawn().map_err(failed)?;
        if let Some(pid) = child.id().filter(|_| launch.program == Program::Trainer) {
            oom::prefer(pid);
        }
        let (offer, memory) = (&launch.resources.offer, launch.resources.memory);
        tracing::info!(handle = launch.name, pid = child.id(), offer, %memory, "started {program}");

        let (stop, stop_asked) = watch::channel(false);
        let (tell, ended) = watch::channel(None);
        let (notify, handle) = (self.ended.clone(), launch.name.clone());
        tokio::spawn(async move {
            let mut kills = KernelKills::read();
            let status = tokio::select! {
                status = supervise(child, stop_asked) => status,
                () = logs::keep_short(log_path.clone()) => return,
                () = kills.watch() => return,
            };
            let words = tail(&log_path).unwrap_or_default();
            let end = end_of(program, status, kills.has_grown(), &words);
            match words.is_empty() {
                false => tracing::warn!(handle, "{}; its last lines:\n{words}", end.message),
                true => tracing::info!(handle, "{}", end.message),
            }
            tell.send_replace(Some(end));
            notify.notify_one();
        });
        let entry = Entry { stop, ended };
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert(launch.name.clone(), entry);
        Ok(launch.name.clone())
    }
}

impl Settings {
    fn command(&self, program: &str, launch: &Launch) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        // A node holds no credentials of the platform, so the scheduler's are not inherited.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_secret(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let token = match launch.program {
            Program::Trainer => "ATTUNE_RUN_TOKEN",
            Program::Serving | Program::Bridge(_) => "ATTUNE_REPLICA_TOKEN",
        };
        command
            .env(token, launch.token.expose_secret())
            .env("OMP_NUM_THREADS", launch.resources.threads.to_string())
            .arg("--api-url")
            .arg(&self.api_url)
            .arg("--cache-dir")
            .arg(self.work_dir.join("cache"))
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C in the terminal is for the scheduler to handle.
            .process_group(0);
        if launch.program == Program::Serving {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
    }
}

fn is_secret(name: &str) -> bool {
    const PASSED_ON: [&str; 3] = ["ATTUNE_LOG", "ATTUNE_LOG_FORMAT", "ATTUNE_METRICS_LISTEN"];
    let is_ours = name.starts_with("ATTUNE_") && !PASSED_ON.contains(&name) && !name.starts_with("ATTUNE_FAILPOINTS");
    is_ours || ["DATABASE_URL", "PGPASSWORD", "PGPASSFILE"].contains(&name) || name.starts_with("AWS_")
}

/// Waits for the child to exit. A stop closes its input first, and kills it after [`GRACE`].
async fn supervise(mut child: Child, mut stop: watch::Receiver<bool>) -> std::io::Result<ExitStatus> {
    let lifeline = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    drop(lifeline);
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

/// Returns the end of a process. Its message is one that tenants may read: the last lines of output may contain paths
/// and other tenants' IDs, so they are only logged, and searched for a failed allocation.
fn end_of(program: &str, status: std::io::Result<ExitStatus>, is_kernel_killing: bool, words: &str) -> Ended {
    let Ok(status) = status else { return Ended::program(format!("{program} ended with an unknown status")) };
    match oom::reason(status, is_kernel_killing, words) {
        Some(reason) => Ended::new(EndCause::OutOfMemory, format!("{program} ended ({status}): {reason}")),
        None if status.code() == Some(EXIT_INTERRUPTED.into()) => {
            Ended::new(EndCause::Interrupted, format!("{program} was interrupted by SIGTERM"))
        }
        None if status.signal() == Some(9) => Ended::program(format!(
            "{program} ended ({status}): it was killed, possibly because the machine ran out of memory"
        )),
        None => Ended::program(format!("{program} ended ({status})")),
    }
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES.unsigned_abs());
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = plain(&String::from_utf8_lossy(&bytes));
    // An incomplete first line is dropped.
    let whole = if start > 0 { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(whole.trim().to_owned())
}

/// Strips escape sequences and other control characters: operators read this in their terminals.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            characters.by_ref().find(|c| c.is_ascii_alphabetic());
        } else if c == '\n' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

impl Provider for Local {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        let settings = &self.settings;
        let offer = Offer {
            free_slots: settings.max_concurrent_runs,
            micro_usd_per_hour: settings.micro_usd_per_hour,
            ..Offer::cpu(&settings.name, "this machine", settings.memory, settings.threads)
        };
        Box::pin(async { Ok(vec![offer]) })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        Box::pin(async move { self.start(&launch) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let process = |(handle, entry): (&String, &Entry)| Process {
            handle: handle.clone(),
            pending: None,
            ended: entry.ended.borrow().clone(),
        };
        let all = children.iter().map(process).collect();
        Box::pin(async { Ok(all) })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        let entry = self.children.lock().unwrap_or_else(PoisonError::into_inner).remove(handle);
        Box::pin(async move {
            if let Some(mut entry) = entry {
                entry.stop.send_replace(true);
                // An error means that the supervising task has ended, and the child with it.
                drop(entry.ended.wait_for(Option::is_some).await);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
