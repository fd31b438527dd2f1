//! The commands of Slurm. Each has a time limit and a limit on its output, and none inherits the scheduler's
//! environment, which holds credentials: `sbatch` would pass it to the job.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::error::CommandError;

/// The size of the largest answer. `squeue --json` prints about 5 KB for each job of the cluster.
const MOST_OUTPUT: u64 = 64 << 20;

/// The number of characters of a command's error output that are kept.
const MOST_MESSAGE: usize = 300;

/// The folders of the commands, unless the configuration names one.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Runs the commands of one cluster.
pub(super) struct Commands {
    folder: Option<PathBuf>,
    slurm_conf: Option<PathBuf>,
    seconds: u64,
}

impl Commands {
    /// Creates the commands in `folder`, or of [`PATH`], which are killed after `seconds`.
    pub(super) const fn new(folder: Option<PathBuf>, slurm_conf: Option<PathBuf>, seconds: u64) -> Self {
        Self { folder, slurm_conf, seconds }
    }

    /// Runs a command with this standard input, and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started, does not exit in time, prints too much, or fails.
    pub(super) async fn run(&self, name: &str, arguments: &[String], input: &str) -> Result<Vec<u8>, CommandError> {
        let limit = Duration::from_secs(self.seconds);
        // The child is killed when the future is dropped.
        match tokio::time::timeout(limit, self.output(name, arguments, input)).await {
            Ok(output) => succeeded(name, output?),
            Err(_) => Err(CommandError::Late { command: name.into(), seconds: self.seconds }),
        }
    }

    async fn output(&self, name: &str, arguments: &[String], input: &str) -> Result<Output, CommandError> {
        let failed = |why: std::io::Error| CommandError::NotStarted { command: name.into(), why: why.to_string() };
        let mut child = self.command(name).args(arguments).spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its input reports its reason itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
        let (stdout, stderr) = (stdout.map_err(failed)?, stderr.map_err(failed)?);
        if stdout.len().max(stderr.len()) as u64 > MOST_OUTPUT {
            return Err(CommandError::TooLong { command: name.into(), bytes: MOST_OUTPUT });
        }
        let status = child.wait().await.map_err(failed)?;
        Ok(Output { status, stdout, stderr })
    }

    fn command(&self, name: &str) -> Command {
        let program = self.folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
        if let Some(path) = &self.slurm_conf {
            command.env("SLURM_CONF", path);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// Reads up to one byte more than [`MOST_OUTPUT`].
async fn read(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(from) = from {
        from.take(MOST_OUTPUT + 1).read_to_end(&mut all).await?;
    }
    Ok(all)
}

fn succeeded(name: &str, output: Output) -> Result<Vec<u8>, CommandError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let (command, status) = (name.into(), output.status.to_string());
    Err(CommandError::Failed { command, status, message: message(&output.stderr) })
}

/// Returns the last lines of an error output as one line.
fn message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let words: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    let skipped = line.chars().count().saturating_sub(MOST_MESSAGE);
    line.chars().skip(skipped).collect()
}
