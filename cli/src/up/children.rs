//! Child processes: started, watched, started again when they die, stopped in order.
//!
//! Each is in a process group of its own, so that a Ctrl-C at the terminal reaches only us and the order of a stop is
//! ours. Every start happens on the main thread: PostgreSQL's "die with the parent" follows the thread that started it.

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

/// A child that lived so long starts again at once when it dies.
const HEALTHY: Duration = Duration::from_secs(60);
/// The longest wait between two starts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How to run a child, and how to end it.
pub(crate) struct Program {
    /// In front of its lines.
    pub(crate) name: &'static str,
    /// With every argument.
    pub(crate) command: Command,
    /// Where its two streams go.
    pub(crate) log: ChildLog,
    /// Asks it to end.
    pub(crate) stop_signal: Signal,
    /// For how long it may take.
    pub(crate) grace: Duration,
    /// Makes it end.
    pub(crate) force_signal: Signal,
}

struct Child {
    program: Program,
    running: Option<Running>,
    /// Deaths in a row.
    deaths: u32,
    /// When to start it again.
    due: Option<Instant>,
}

struct Running {
    process: tokio::process::Child,
    /// Our programs end when this closes, which the kernel sees to even under `kill -9`.
    _stdin: Option<ChildStdin>,
    since: Instant,
}

/// All of them, in the order in which they were started.
#[derive(Default)]
pub(crate) struct Children(Vec<Child>);

impl Children {
    /// Starts a program and keeps it.
    ///
    /// # Errors
    /// [`CliError::Failed`] if it cannot be run.
    pub(crate) fn start(&mut self, mut program: Program) -> Result<()> {
        let running = Some(spawn(&mut program)?);
        self.0.push(Child { program, running, deaths: 0, due: None });
        Ok(())
    }

    /// For the time before a child is ready: then its end is ours.
    ///
    /// # Errors
    /// [`CliError::Failed`] with its last lines, if it has ended.
    pub(crate) fn refuse_if_ended(&mut self, name: &str) -> Result<()> {
        for child in self.0.iter_mut().filter(|child| child.program.name == name) {
            let Some(running) = &mut child.running else { continue };
            if let Some(status) = running.process.try_wait().doing(|| format!("watch {name}"))? {
                child.running = None;
                return Err(CliError::Failed(format!(
                    "{name} ended before it was ready ({status}); its last lines ({}):{}",
                    child.program.log.path().display(),
                    child.program.log.tail()
                )));
            }
        }
        Ok(())
    }

    /// Starts again what dies, for ever.
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

    /// Ends one in good order; does nothing if it is not there.
    pub(crate) async fn stop(&mut self, name: &str) {
        for child in self.0.iter_mut().filter(|child| child.program.name == name) {
            child.due = None;
            let Some(running) = &mut child.running else { continue };
            let Program { stop_signal, grace, force_signal, .. } = child.program;
            signal(&running.process, stop_signal);
            if timeout(grace, running.process.wait()).await.is_err() {
                say(&format!("{name} did not end within {} s; ending it at once", grace.as_secs()));
                force(&mut running.process, force_signal).await;
            }
            child.running = None;
        }
    }

    /// Ends all, the last started first, without waiting for their good order.
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
        say(&format!("{} ended ({how}); starting it again in {} s", self.program.name, wait.as_secs()));
    }

    fn start_again(&mut self) {
        self.due = None;
        match spawn(&mut self.program) {
            Ok(running) => {
                say(&format!("started {} again", self.program.name));
                self.running = Some(running);
            }
            Err(e) => self.ended(&e.to_string()),
        }
    }
}

/// 0 after a long life, then 1, 2, 4 … seconds.
fn wait_after(deaths: u32) -> Duration {
    match deaths {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1 << (deaths - 1).min(5)).min(LONGEST_WAIT),
    }
}

/// The first running child to end: its place and how.
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
    // Taken out, because waiting for a child closes the input that is still in it.
    let _stdin = process.stdin.take();
    Ok(Running { process, _stdin, since: Instant::now() })
}

async fn force(process: &mut tokio::process::Child, with: Signal) {
    signal(process, with);
    if timeout(Duration::from_secs(5), process.wait()).await.is_err() {
        drop(process.kill().await);
    }
}

/// A child that has ended and was not waited for still has its number, so this cannot hit a stranger.
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
    async fn an_early_end_is_told_with_the_last_lines() {
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
