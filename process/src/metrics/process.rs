//! Metrics of the process, read from the kernel at each scrape.

use std::fs;

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeValLike,
};

use super::metric::metrics;

metrics! {
    /// Always 1.
    BUILD_INFO: Gauge = "attune_build_info" ["program", "version"];
    /// Processor time of the process, user and system.
    CPU_SECONDS: Counter = "process_cpu_seconds_total" [];
    /// Resident memory of the process.
    RESIDENT_BYTES: Gauge = "process_resident_memory_bytes" [];
    /// Open file descriptors.
    OPEN_FDS: Gauge = "process_open_fds" [];
    /// The limit on open file descriptors.
    MAX_FDS: Gauge = "process_max_fds" [];
    /// Threads of the process.
    THREADS: Gauge = "process_threads" [];
    /// The start of the process, in Unix time.
    START_SECONDS: Gauge = "process_start_time_seconds" [];
}

/// Names the program. Call it once, early in `main`.
pub fn start(program: &str, version: &str) {
    BUILD_INFO.set([program, version], 1.0);
    START_SECONDS.set_to_now();
}

/// Reads the process's state. A value that the kernel does not return is not published.
pub(crate) fn sample() {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let spent = usage.user_time() + usage.system_time();
        CPU_SECONDS.raise_to([], spent.num_microseconds() as f64 / 1e6);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        MAX_FDS.set([], soft as f64);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder's own.
        OPEN_FDS.set([], open.count().saturating_sub(1) as f64);
    }
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return };
    if let Some(kib) = field(&status, "VmRSS:") {
        RESIDENT_BYTES.set([], kib * 1024.0);
    }
    if let Some(threads) = field(&status, "Threads:") {
        THREADS.set([], threads);
    }
}

/// Returns the number of a line of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_status_is_a_number() {
        let status = "Name:\tattune\nVmRSS:\t    1234 kB\nThreads:\t7\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "Threads:")), (Some(1234.0), Some(7.0)));
        assert_eq!(field(status, "VmSwap:"), None);
    }
}
