//! The platform's log: lines prefixed with the name of their program, on stderr and in `<data>/logs/`.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use attune_process::log::{Log, LossyWriter, lossy_stderr, on_panic};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::private;
use crate::error::{Doing, Result};

/// The size above which a log file is rotated; one older file is kept.
const ROTATE_BYTES: u64 = 16 << 20;
/// The length at which lines are truncated when they are read, so that a child cannot exhaust the memory.
const LINE_BYTES: usize = 64 << 10;

/// Logs a line of `attune up` itself.
pub(crate) fn say(line: &str) {
    print("attune", line);
}

/// The writer of lines to the terminal, set by [`start`].
static TERMINAL: OnceLock<LossyWriter> = OnceLock::new();

/// Starts a thread that writes lines and panic messages, until the returned guard is dropped. A terminal that is closed
/// or paused (Ctrl-S) then cannot block the platform.
pub(super) fn start() -> Log {
    let (writer, log) = lossy_stderr();
    drop(TERMINAL.set(writer));
    on_panic(say);
    log
}

fn print(name: &str, line: &str) {
    let line = format!("{name:<9} | {line}\n");
    // An error cannot be reported anywhere else.
    drop(match TERMINAL.get() {
        Some(terminal) => terminal.clone().write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    });
}

/// The log of a child, cloned for its two streams.
#[derive(Clone)]
pub(crate) struct ChildLog(Arc<Mutex<Inner>>);

struct Inner {
    name: &'static str,
    path: PathBuf,
    file: File,
    written: u64,
    last_lines: std::collections::VecDeque<String>,
    quiet: fn(&str) -> bool,
}

impl ChildLog {
    /// Opens `<data>/logs/<name>.log` for appending. Lines for which `quiet` returns true are only written to the file.
    ///
    /// # Errors
    /// [`crate::error::CliError::Failed`]: the file cannot be opened.
    pub(crate) fn open(data: &Path, name: &'static str, quiet: fn(&str) -> bool) -> Result<Self> {
        let folder = data.join("logs");
        private::folder(&folder)?;
        let path = folder.join(format!("{name}.log"));
        let (file, written) = append(&path).doing(|| format!("open {}", path.display()))?;
        let last_lines = std::collections::VecDeque::new();
        Ok(Self(Arc::new(Mutex::new(Inner { name, path, file, written, last_lines, quiet }))))
    }

    /// Spawns a task that logs the lines of `stream` until it ends.
    pub(crate) fn follow(&self, stream: impl AsyncRead + Unpin + Send + 'static) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            loop {
                line.clear();
                match read_line(&mut lines, &mut line).await {
                    Ok(true) => log.line(String::from_utf8_lossy(&line).trim_end()),
                    Ok(false) | Err(_) => break,
                }
            }
        });
    }

    /// Returns the last lines, for an error message about the child's exit.
    pub(crate) fn tail(&self) -> String {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last_lines.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// Returns the path of the log file.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }

    fn line(&self, line: &str) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !(inner.quiet)(line) {
            print(inner.name, line);
        }
        if inner.last_lines.len() == 8 {
            inner.last_lines.pop_front();
        }
        inner.last_lines.push_back(line.to_owned());
        inner.write(line);
    }
}

impl Inner {
    /// Writes a line to the file. Errors are ignored, since a full disk must not stop the platform.
    fn write(&mut self, line: &str) {
        if self.written > ROTATE_BYTES {
            drop(std::fs::rename(&self.path, self.path.with_extension("log.1")));
            if let Ok((file, written)) = append(&self.path) {
                (self.file, self.written) = (file, written);
            }
        }
        if writeln!(self.file, "{line}").is_ok() {
            self.written += line.len() as u64 + 1;
        }
    }
}

fn append(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::options().append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Reads one line into `line`, truncated to [`LINE_BYTES`]; returns false at the end of the stream.
async fn read_line(stream: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let ready = stream.fill_buf().await?;
        if ready.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = ready.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(ready.len(), |at| at + 1);
        let room = LINE_BYTES.saturating_sub(line.len());
        line.extend_from_slice(&ready[..taken.min(room)]);
        stream.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}
