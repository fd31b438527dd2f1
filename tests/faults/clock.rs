//! The clock of a program, which libfaketime changes while the program runs: <https://github.com/wolfcw/libfaketime>.
//!
//! Only the wall clock changes: not the monotonic one, by which programs measure durations, nor the times of files.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use attune_tests::platform::{program, text};

/// The programs that the scheduler starts.
const CHILDREN: [&str; 2] = ["attune-trainer", "attune-serving"];

/// The right time.
pub(crate) const RIGHT: &str = "+0";

/// Sets the clock of the program `name` to an offset, such as `+3d`; its processes read it within a second.
pub(crate) fn set(folder: &Path, name: &str, offset: &str) -> Result<()> {
    // Renamed, so that no process reads half of it.
    let (new, file) = (folder.join(format!("{name}.clock.new")), file(folder, name));
    fs::write(&new, format!("{offset}\n"))?;
    Ok(fs::rename(new, file)?)
}

/// Returns the environment of the program `name`, and sets its clock right.
pub(crate) fn environment(folder: &Path, name: &str) -> Result<[(&'static str, String); 5]> {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", env::consts::ARCH);
    ensure!(Path::new(&library).exists(), "{library} is missing: run scripts/setup --faults");
    set(folder, name, RIGHT)?;
    Ok([
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", text(&file(folder, name))?.to_owned()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ])
}

/// Creates a folder with trainers and replicas that have clocks of their own. They inherit the scheduler's environment.
pub(crate) fn children(folder: &Path) -> Result<PathBuf> {
    let binaries = folder.join("bin");
    fs::create_dir(&binaries)?;
    for name in CHILDREN {
        set(folder, name, RIGHT)?;
        let (clock, program, script) = (file(folder, name), program(name)?, binaries.join(name));
        let (clock, program) = (text(&clock)?, text(&program)?);
        fs::write(&script, format!("#!/bin/sh\nFAKETIME_TIMESTAMP_FILE='{clock}' exec '{program}' \"$@\"\n"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(binaries)
}

/// Removes the shared memory that libfaketime created for a process that has ended.
pub(crate) fn forget(process: u32) {
    for name in ["faketime_shm_", "sem.faketime_sem_"] {
        let _ = fs::remove_file(format!("/dev/shm/{name}{process}"));
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.clock"))
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        time::{SystemTime, UNIX_EPOCH},
    };

    use super::*;

    /// Returns the seconds by which a process's clock is ahead.
    fn ahead(folder: &Path) -> i64 {
        let mut date = Command::new("date");
        date.arg("+%s");
        for (name, value) in environment(folder, "date").unwrap() {
            date.env(name, value);
        }
        set(folder, "date", "+3d").unwrap();
        let child = date.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let id = child.id();
        let output = child.wait_with_output().unwrap();
        forget(id);
        let shown: i64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        shown - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
    }

    #[test]
    fn a_program_sees_the_clock_that_its_file_states() {
        let folder = tempfile::tempdir().unwrap();
        let ahead = ahead(folder.path());
        assert!((ahead - 3 * 24 * 3600).abs() < 10, "{ahead} s");
    }
}
