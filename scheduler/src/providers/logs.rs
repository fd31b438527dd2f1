//! The logs of this machine's runs and replicas, limited in length and in number.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The maximum length of a log, in bytes. A longer one is truncated to its second half.
pub(crate) const LOG_BYTES: u64 = 16 << 20;

/// The number of logs that are kept, in addition to new ones.
pub(crate) const MOST_LOGS: usize = 200;

/// The interval between two checks of a log's length.
const LOOK: Duration = Duration::from_secs(5);

/// Opens a new log, and removes the oldest beyond [`MOST_LOGS`].
///
/// # Errors
/// The folder cannot be read, or the file cannot be created.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        prune(folder, MOST_LOGS)?;
    }
    // Truncated when it is opened; later writes append, also after the file was cut.
    File::create(path)?;
    File::options().append(true).open(path)
}

/// Limits a log's length for as long as it is polled.
pub(crate) async fn keep_short(path: PathBuf) {
    loop {
        tokio::time::sleep(LOOK).await;
        let path = path.clone();
        let cut = tokio::task::spawn_blocking(move || cut(&path, LOG_BYTES)).await;
        if let Ok(Err(error)) = cut {
            tracing::warn!(%error, "a log could not be truncated");
        }
    }
}

/// Cuts the file to the whole lines of its second half if it is longer than `most`. Lines written meanwhile may be
/// lost.
fn cut(path: &Path, most: u64) -> io::Result<()> {
    // A file that could not be created, or was removed meanwhile, has length 0.
    let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length <= most {
        return Ok(());
    }
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length - most / 2))?;
    file.read_to_end(&mut tail)?;
    let first_line = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(0)?;
    let mut end = File::options().append(true).open(path)?;
    end.write_all(&tail[first_line..])
}

/// Removes the least recently written logs until `most` are left. Those of running processes are recent.
fn prune(folder: &Path, most: usize) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let written_at = entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        logs.push((written_at, entry.path()));
    }
    logs.sort();
    let surplus = logs.len().saturating_sub(most);
    for (_, path) in logs.into_iter().take(surplus) {
        fs::remove_file(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_a_log_s_length_keeps_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.log");
        let mut log = open(&path).unwrap();
        for line in 0..1000 {
            writeln!(log, "line {line:04}").unwrap();
        }
        cut(&path, 10_000).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 10_000, "as long as it may be");
        writeln!(log, "one more").unwrap();
        cut(&path, 10_000).unwrap();
        writeln!(log, "and the last").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("line 05"), "{}", &text[..20]);
        assert!(text.ends_with("line 0999\none more\nand the last\n"), "the writer goes on at the end");
        assert!(text.len() < 6_000);
    }

    #[test]
    fn limit_of_the_number_of_logs_removes_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..5 {
            let file = File::create(folder.path().join(format!("{number}.log"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(10 - number)).unwrap();
        }
        prune(folder.path(), 3).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["0.log", "1.log", "2.log"]);
    }
}
