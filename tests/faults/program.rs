//! A program of the platform, started with its settings file, killed, and started again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use attune_tests::platform::program;
use nix::sys::signal::Signal;

use crate::{clock, processes};

/// The longest graceful stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A program, killed on drop.
pub(crate) struct Program {
    name: &'static str,
    settings: PathBuf,
    log: PathBuf,
    clock: [(&'static str, String); 5],
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Program {
    /// Writes the settings of a program. It is not started yet.
    pub(crate) fn new(name: &'static str, folder: &Path, settings: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.toml"));
        fs::write(&path, settings)?;
        let (log, clock) = (folder.join(format!("{name}.log")), clock::environment(folder, name)?);
        Ok(Self { name, settings: path, log, clock, environment: Vec::new(), child: None })
    }

    /// Sets the environment variables of the next start, in addition to those of the clock.
    pub(crate) fn set_environment(&mut self, environment: &[(&'static str, String)]) {
        self.environment = environment.to_vec();
    }

    /// Starts the program if it does not run; returns whether it did not.
    pub(crate) fn start(&mut self) -> Result<bool> {
        if let Some(child) = &mut self.child {
            if child.try_wait()?.is_none() {
                return Ok(false);
            }
            clock::forget(child.id());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program(self.name)?);
        command.arg("--config").arg(&self.settings).arg("--exit-with-parent").env("NO_COLOR", "1");
        command.envs(self.clock.iter().chain(&self.environment).map(|(name, value)| (*name, value)));
        // The program exits when this pipe closes, and so with the test.
        self.child = Some(command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(true)
    }

    /// Returns the process ID, if the program was started.
    pub(crate) fn id(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id().cast_signed())
    }

    /// Returns whether the program does not run.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Kills the program; returns whether it ran.
    pub(crate) fn kill(&mut self) -> Result<bool> {
        let Some(mut child) = self.child.take() else { return Ok(false) };
        let ran = child.try_wait()?.is_none();
        child.kill()?;
        child.wait()?;
        clock::forget(child.id());
        Ok(ran)
    }

    /// Stops the program gracefully.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        processes::signal(child.id().cast_signed(), Signal::SIGTERM);
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > STOP_WITHIN {
                child.kill()?;
                child.wait()?;
                bail!("{} did not stop within {STOP_WITHIN:?}:\n{}", self.name, self.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
        clock::forget(child.id());
        Ok(())
    }

    /// Returns the last lines of the log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
