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

use attune_domain::{bytes::Bytes, offer::Offer};
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
        provider::{Launch, Process, Program, Provider},
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
    /// The exit message, once the child has ended.
    ended: watch::Receiver<Option<String>>,
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
        let (offer, memory) = (&launch.resources.offer, launch.resources.memory);
        tracing::info!(handle = launch.name, pid = child.id(), offer, %memory, "started {program}");

        let (stop, stop_asked) = watch::channel(false);
        let (tell, ended) = watch::channel(None);
        let (notify, handle) = (self.ended.clone(), launch.name.clone());
        tokio::spawn(async move {
            let status = tokio::select! {
                status = supervise(child, stop_asked) => status,
                () = logs::keep_short(log_path.clone()) => return,
            };
            let how = exit_message(program, status);
            match tail(&log_path) {
                Ok(words) if !words.is_empty() => tracing::warn!(handle, "{how}; its last lines:\n{words}"),
                _ => tracing::info!(handle, "{how}"),
            }
            tell.send_replace(Some(how));
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
            Program::Serving => "ATTUNE_REPLICA_TOKEN",
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
    let is_ours = name.starts_with("ATTUNE_") && name != "ATTUNE_LOG";
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

/// Returns an exit message that tenants may read. The last lines of output may contain paths and other tenants' IDs, so
/// they are only logged.
fn exit_message(program: &str, status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) if status.signal() == Some(9) => {
            format!("{program} ended ({status}): it was killed, possibly because the machine ran out of memory")
        }
        Ok(status) => format!("{program} ended ({status})"),
        Err(_) => format!("{program} ended with an unknown status"),
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
        let offer = Offer {
            provider: self.settings.name.clone(),
            name: "this machine".into(),
            memory: self.settings.memory,
            reserved: Bytes(0),
            free_slots: self.settings.max_concurrent_runs,
            threads: self.settings.threads,
            micro_usd_per_hour: self.settings.micro_usd_per_hour,
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::providers::provider::Resources;

    /// Returns a provider whose trainer is a shell script.
    fn machine(folder: &Path, script: &str) -> (Local, Arc<Notify>) {
        let program = folder.join("attune-trainer");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = LocalConfig {
            name: "local".into(),
            work_dir: folder.join("node"),
            binaries_dir: Some(folder.to_path_buf()),
            memory_bytes: Some(1 << 30),
            threads: Some(2),
            max_concurrent_runs: 1,
            usd_per_hour: 0.0,
        };
        let notify = Arc::new(Notify::new());
        (Local::new(&config, "http://127.0.0.1:1", notify.clone()).unwrap(), notify)
    }

    fn launch() -> Launch {
        let resources = Resources { offer: "this machine".into(), memory: Bytes::mib(1), threads: 2 };
        Launch { program: Program::Trainer, name: "run_1".into(), token: "secret".to_owned().into(), resources }
    }

    #[tokio::test]
    async fn attack_a28_a_dead_child_notifies_and_its_last_lines_are_sent_to_no_user() {
        let folder = tempfile::tempdir().unwrap();
        let (local, notify) = machine(folder.path(), "echo \"token $ATTUNE_RUN_TOKEN\"; echo /data/x/y >&2; exit 3");
        let handle = local.launch(launch()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
        let seen = local.list().await.unwrap();
        assert_eq!(seen[0].ended.as_deref(), Some("attune-trainer ended (exit status: 3)"));
        assert_eq!(tail(&folder.path().join("node/logs/run_1.log")).unwrap(), "token secret\n/data/x/y");
        local.stop(&handle).await.unwrap();
        assert_eq!(local.list().await.unwrap(), []);
    }

    /// A replica's log contains output about every project that it served; users waiting for the replica must not see
    /// it.
    #[tokio::test]
    async fn the_last_words_of_a_serving_process_are_not_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (local, notify) = machine(folder.path(), "");
        let program = folder.path().join("attune-serving");
        std::fs::write(&program, "#!/bin/sh\necho adapter adapter_1 of another; exit 3\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        local.launch(Launch { program: Program::Serving, ..launch() }).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
        let ended = local.list().await.unwrap()[0].ended.clone().unwrap();
        assert_eq!(ended, "attune-serving ended (exit status: 3)");
    }

    #[tokio::test]
    async fn attack_a28_a_child_starts_though_its_log_cannot_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let (local, notify) = machine(folder.path(), "echo nobody reads this; exit 0");
        std::fs::create_dir(folder.path().join("node/logs/run_1.log")).unwrap(); // in the log's place
        let handle = local.launch(launch()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
        assert_eq!(local.list().await.unwrap()[0].ended.as_deref(), Some("attune-trainer ended (exit status: 0)"));
        local.stop(&handle).await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_ends_the_childs_input() {
        let folder = tempfile::tempdir().unwrap();
        let (local, _bell) = machine(folder.path(), "cat >/dev/null; exit 0");
        let handle = local.launch(launch()).await.unwrap();
        assert_eq!(local.list().await.unwrap(), [Process { handle: handle.clone(), ended: None }]);
        tokio::time::timeout(GRACE, local.stop(&handle)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (local, _bell) = machine(folder.path(), "");
        std::fs::remove_file(folder.path().join("attune-trainer")).unwrap();
        assert_eq!(local.launch(launch()).await.unwrap_err().to_string(), "starting attune-trainer failed");
        assert_eq!(local.list().await.unwrap(), []);
    }

    #[test]
    fn secrets_of_the_platform_are_not_handed_down() {
        assert!(is_secret("ATTUNE_DATABASE__URL") && is_secret("AWS_SECRET_ACCESS_KEY") && is_secret("DATABASE_URL"));
        assert!(!is_secret("ATTUNE_LOG") && !is_secret("PATH") && !is_secret("LD_LIBRARY_PATH"));
    }

    #[test]
    fn last_words_come_without_colours() {
        assert_eq!(plain("\u{1b}[31mno\0 memory\u{1b}[0m\n"), "no memory\n");
    }
}
