//! Library settings that are read before `main`: how libtorch's threads wait for each other, and how much memory the
//! allocator returns.
//!
//! By default threads spin for milliseconds at the end of each parallel loop. That is faster on an otherwise idle
//! machine. Where other programs use the CPUs too, a preempted thread keeps the others spinning, at every one of
//! thousands of loops: a training step of 6 s took 100 s next to a busy compiler on two cores. Sleeping costs
//! microseconds.

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// The variable that sets the wait policy of libgomp and of LLVM's and Intel's runtimes; a value that the user has set
/// is kept.
const POLICY: &str = "OMP_WAIT_POLICY";

/// glibc's settings: up to 8 GiB of freed memory is kept (`attune_model::allocator` sets from when on), and all threads
/// share one heap. A thread otherwise gets separate heaps of 64 MiB, where the rest of one is of no use to a larger
/// tensor.
/// libgomp's setting: a thread spins this many times, for some 40 µs, before it sleeps; the loops of a step follow each
/// other faster than a thread wakes.
const FOR_TRAINING: [(&str, &str); 3] =
    [("MALLOC_TRIM_THRESHOLD_", "8589934592"), ("MALLOC_ARENA_MAX", "1"), ("GOMP_SPINCOUNT", "3000")];

/// Makes waiting threads sleep. The OpenMP runtime reads its settings before `main`, so this process re-executes itself
/// once, with the same arguments, process ID and standard streams. Call it first.
///
/// # Errors
/// The process could not be re-executed; continuing without it is slower, not wrong.
pub fn let_waiting_threads_sleep() -> io::Result<()> {
    anew(&[])
}

/// Makes waiting threads sleep like [`let_waiting_threads_sleep`], and keeps freed memory for the next tensor: for a
/// process that repeats the same work, and exits afterwards.
///
/// # Errors
/// The errors of [`let_waiting_threads_sleep`].
pub fn settle_for_training() -> io::Result<()> {
    anew(&FOR_TRAINING)
}

fn anew(more: &[(&str, &str)]) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "it is another library's setting, and decides whether to start anew")]
    let decided = env::var_os(POLICY).is_some();
    if decided {
        return Ok(());
    }
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).env(POLICY, "passive").envs(more.iter().copied());
    Err(command.exec())
}
