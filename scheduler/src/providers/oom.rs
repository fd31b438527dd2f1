//! Evidence that a process on this machine ended because memory ran out.

use std::{fs, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

/// The interval at which the kernel's count is read while a process runs. A kill is noticed if it happened at most two
/// intervals before the process's end, which is when a process with much memory has been freed.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// The last lines of programs that abort because an allocation failed: Rust's, and C++'s.
const ABORTS: [&str; 2] = ["memory allocation of ", "std::bad_alloc"];

/// The badness that is added to a trainer's, of at most 1000.
const TRAINER_BADNESS: &str = "500";

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

/// The number of processes that the kernel has killed because memory ran out, on the whole machine or in a cgroup.
pub(crate) struct KernelKills {
    /// The count one interval before the latest.
    earlier: u64,
    latest: u64,
}

impl KernelKills {
    /// Reads the count.
    pub(crate) fn read() -> Self {
        let count = count(&fs::read_to_string("/proc/vmstat").unwrap_or_default());
        Self { earlier: count, latest: count }
    }

    /// Reads the count again and again.
    pub(crate) async fn watch(&mut self) {
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            *self = Self { earlier: self.latest, latest: Self::read().latest };
        }
    }

    /// Returns whether the count has grown recently.
    pub(crate) fn has_grown(&self) -> bool {
        Self::read().latest > self.earlier
    }
}

/// Reads the count from the text of `/proc/vmstat`. Kernels before 4.13 have none.
fn count(vmstat: &str) -> u64 {
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

/// Returns the reason if a process with this exit status ended because memory ran out. `is_kernel_killing`: the kernel
/// has killed a process for that recently; `tail`: the end of the process's output.
pub(crate) fn reason(status: ExitStatus, is_kernel_killing: bool, tail: &str) -> Option<&'static str> {
    match status.signal() {
        Some(SIGKILL) if is_kernel_killing => Some("the kernel killed it because memory ran out"),
        Some(SIGABRT) if ABORTS.iter().any(|words| tail.contains(words)) => Some("it could not allocate memory"),
        _ => None,
    }
}

/// Makes the kernel kill this process before others when memory runs out: a trainer resumes from its checkpoint, and
/// the database and the replicas do not.
pub(crate) fn prefer(pid: u32) {
    if let Err(why) = fs::write(format!("/proc/{pid}/oom_score_adj"), TRAINER_BADNESS) {
        tracing::debug!(pid, %why, "the kernel's choice when memory runs out could not be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_its_own_line() {
        assert_eq!(count("nr_free_pages 7\noom_kill 3\noom_kill_other 9\n"), 3);
        assert_eq!(count("nr_free_pages 7\n"), 0);
    }

    #[test]
    fn only_an_abort_for_lack_of_memory_counts() {
        let aborted = ExitStatus::from_raw(SIGABRT);
        let aborts = |tail| reason(aborted, false, tail);
        assert!(aborts("memory allocation of 4096 bytes failed").is_some());
        assert!(aborts("terminate called after throwing an instance of 'std::bad_alloc'").is_some());
        assert_eq!(reason(aborted, true, "assertion failed"), None);
        assert_eq!(reason(ExitStatus::from_raw(1 << 8), true, "memory allocation of 1 bytes failed"), None);
    }

    #[test]
    fn a_kill_counts_only_if_the_kernel_kills() {
        let killed = ExitStatus::from_raw(SIGKILL);
        assert!(reason(killed, true, "").is_some());
        assert_eq!(reason(killed, false, "memory allocation of 4096 bytes failed"), None);
    }

    #[test]
    fn a_count_that_stays_the_same_has_not_grown() {
        let now = KernelKills::read();
        assert!(!KernelKills { earlier: u64::MAX, ..now }.has_grown());
    }
}
