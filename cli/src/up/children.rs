//! The supervision of child processes: start, restart after an exit, graceful stop.
//!
//! Each child has its own process group, so that Ctrl-C at the terminal reaches only `attune up`, which stops the
//! children in order. All children are started on the main thread: PostgreSQL's parent-death signal follows the thread
//! that started it.

use std::{process::Stdio, time::Duration};

use futures::{FutureExt, future::select_all};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{ChildStdin, Command},
    time::{Instant, sleep_until, timeout},
};

use super::log::{ChildLog, say};
use crate::error::{CliError, Doing, Result};

/// The uptime after which a child that exits is restarted immediately.
const HEALTHY: Duration = Duration::from_secs(60);
/// The longest delay before a restart.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A child program: its command, its log, and how it is stopped.
pub(crate) struct Program {
    /// The name, which prefixes the child's log lines.
    pub(crate) name: &'static str,
    /// The command with all arguments.
    pub(crate) command: Command,
    /// The log of stdout and stderr.
    pub(crate) log: ChildLog,
    /// The signal for a graceful stop.
    pub(crate) stop_signal: Signal,
    /// The longest duration of a graceful stop.
    pub(crate) grace: Duration,
    /// The signal for an immediate stop.
    pub(crate) force_signal: Signal,
}

struct Child {
    program: Program,
    running: Option<Running>,
    /// The number of early exits in a row.
    deaths: u32,
    /// The time of the next restart.
    due: Option<Instant>,
}

struct Running {
    process: tokio::process::Child,
    /// Attune's programs exit when this pipe closes; the kernel closes it even after `kill -9`.
    _stdin: Option<ChildStdin>,
    since: Instant,
}

/// The children, in the order of their start.
#[derive(Default)]
pub(crate) struct Children(Vec<Child>);

impl Children {
    /// Starts a program and supervises it.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the program cannot be run.
    pub(crate) fn start(&mut self, mut program: Program) -> Result<()> {
        let running = Some(spawn(&mut program)?);
        self.0.push(Child { program, running, deaths: 0, due: None });
        Ok(())
    }

    /// Returns an error if a child has exited; used until the child is ready, since an early exit fails the start.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the child's last log lines, if it has exited.
    pub(crate) fn refuse_if_ended(&mut self, name: &str) -> Result<()> {
        for child in self.0.iter_mut().filter(|child| child.program.name == name) {
            let Some(running) = &mut child.running else { continue };
            if let Some(status) = running.process.try_wait().doing(|| format!("watch {name}"))? {
                child.running = None;
                return Err(CliError::Failed(format!(
                    "{name} exited before it was ready ({status}). Its last log lines ({}):{}",
                    child.program.log.path().display(),
                    child.program.log.tail()
                )));
            }
        }
        Ok(())
    }

    /// Restarts children that exit, without end.
    pub(crate) async fn watch(&mut self) {
        loop {
            let due = self.0.iter().filter_map(|child| child.due).min();
            tokio::select! {
                (index, ended) = any_end(&mut self.0) => self.0[index].ended(&ended),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            for child in self.0.iter_mut().filter(|child| child.due.is_some_and(|due| due <= Instant::now())) {
                child.start_again();
            }
        }
    }

    /// Stops a child gracefully, or immediately after its grace period; does nothing if it is not running.
    pub(crate) async fn stop(&mut self, name: &str) {
        for child in self.0.iter_mut().filter(|child| child.program.name == name) {
            child.due = None;
            let Some(running) = &mut child.running else { continue };
            let Program { stop_signal, grace, force_signal, .. } = child.program;
            signal(&running.process, stop_signal);
            if timeout(grace, running.process.wait()).await.is_err() {
                say(&format!("{name} did not stop within {} s; killing it", grace.as_secs()));
                force(&mut running.process, force_signal).await;
            }
            child.running = None;
        }
    }

    /// Stops all children immediately, in reverse order of their start.
    pub(crate) async fn force(&mut self) {
        for child in self.0.iter_mut().rev() {
            if let Some(mut running) = child.running.take() {
                force(&mut running.process, child.program.force_signal).await;
            }
        }
    }
}

impl Child {
    fn ended(&mut self, how: &str) {
        let lived = self.running.take().map_or(Duration::ZERO, |running| running.since.elapsed());
        self.deaths = if lived > HEALTHY { 0 } else { self.deaths + 1 };
        let wait = wait_after(self.deaths);
        self.due = Some(Instant::now() + wait);
        say(&format!("{} exited ({how}); restarting it in {} s", self.program.name, wait.as_secs()));
    }

    fn start_again(&mut self) {
        self.due = None;
        match spawn(&mut self.program) {
            Ok(running) => {
                say(&format!("restarted {}", self.program.name));
                self.running = Some(running);
            }
            Err(e) => self.ended(&e.to_string()),
        }
    }
}

/// Returns the delay of a restart: 0 after a long uptime, then 1, 2, 4 … seconds.
fn wait_after(deaths: u32) -> Duration {
    match deaths {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1 << (deaths - 1).min(5)).min(LONGEST_WAIT),
    }
}

/// Waits for the first running child to exit; returns its index and its exit status.
async fn any_end(children: &mut [Child]) -> (usize, String) {
    let waits: Vec<_> = children
        .iter_mut()
        .enumerate()
        .filter_map(|(index, child)| child.running.as_mut().map(|running| (index, running)))
        .map(|(index, running)| running.process.wait().map(move |ended| (index, ended)).boxed())
        .collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    let ((index, ended), _, _) = select_all(waits).await;
    (index, ended.map_or_else(|e| e.to_string(), |status| status.to_string()))
}

fn spawn(program: &mut Program) -> Result<Running> {
    let Program { name, command, log, .. } = program;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().doing(|| format!("run {name}"))?;
    if let Some(stream) = process.stdout.take() {
        log.follow(stream);
    }
    if let Some(stream) = process.stderr.take() {
        log.follow(stream);
    }
    // Moved out of the child, because `wait` closes the stdin that is still in it.
    let _stdin = process.stdin.take();
    Ok(Running { process, _stdin, since: Instant::now() })
}

async fn force(process: &mut tokio::process::Child, with: Signal) {
    signal(process, with);
    if timeout(Duration::from_secs(5), process.wait()).await.is_err() {
        drop(process.kill().await);
    }
}

/// Sends a signal. An exited child keeps its process ID until it is waited for, so no other process can get the signal.
fn signal(process: &tokio::process::Child, which: Signal) {
    if let Some(pid) = process.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(pid), which);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(data: &std::path::Path, script: &str) -> Program {
        let mut command = Command::new("sh");
        command.args(["-c", script]).kill_on_drop(true);
        Program {
            name: "child",
            command,
            log: ChildLog::open(data, "child", |_| true).unwrap(),
            stop_signal: Signal::SIGTERM,
            grace: Duration::from_millis(300),
            force_signal: Signal::SIGKILL,
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::default();
        let marks = folder.path().join("marks");
        children.start(program(folder.path(), &format!("echo x >> {}; sleep 0.1", marks.display()))).unwrap();
        drop(timeout(Duration::from_millis(1700), children.watch()).await);
        children.force().await;
        assert!(std::fs::read_to_string(&marks).unwrap().lines().count() >= 2);
    }

    #[tokio::test]
    async fn a_child_that_will_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::default();
        children.start(program(folder.path(), "trap '' TERM; while :; do sleep 0.05; done")).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        timeout(Duration::from_secs(5), children.stop("child")).await.unwrap();
    }

    #[tokio::test]
    async fn an_early_end_is_reported_with_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::default();
        children.start(program(folder.path(), "echo the port is taken; exit 3")).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let refused = children.refuse_if_ended("child").unwrap_err().to_string();
        assert!(refused.contains("exit status: 3") && refused.ends_with("the port is taken"), "{refused}");
    }

    #[test]
    fn the_wait_grows_to_half_a_minute() {
        let waits: Vec<u64> = (0..9).map(|deaths| wait_after(deaths).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }
}
