//! Settings of libraries that are read before `main`: how libtorch's threads wait for each other, and what the allocator
//! gives back.
//!
//! By default threads spin for milliseconds at the end of each parallel loop. That pays on a machine of one's own. Where
//! other programs want the processors too, a thread that was put aside keeps the others spinning, at every one of
//! thousands of loops: a training step of 6 s took 100 s beside a busy compiler on two cores. Sleeping costs microseconds.
//!
//! A training step allocates and frees the same hundreds of large tensors each time. By default each goes back to the
//! system and comes anew, page by page and cleared: a twentieth of the step's time.

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// Decides it for libgomp and for LLVM's and Intel's runtime; whoever has set it keeps what was set.
const POLICY: &str = "OMP_WAIT_POLICY";

/// glibc's: memory of up to 4 GiB in one piece is kept for the next, and 8 GiB in all. libgomp's: a thread looks so often
/// for its next loop, for some 40 µs, before it sleeps; the loops of a step follow each other faster than a thread wakes.
const FOR_TRAINING: [(&str, &str); 3] =
    [("MALLOC_MMAP_THRESHOLD_", "4294967296"), ("MALLOC_TRIM_THRESHOLD_", "8589934592"), ("GOMP_SPINCOUNT", "3000")];

/// Lets waiting threads sleep. The OpenMP runtime reads its settings before `main`, so this process starts itself anew,
/// once, with the same arguments, process id and standard streams. Call it first.
///
/// # Errors
/// It could not be started anew; going on as before is slower, not wrong.
pub fn let_waiting_threads_sleep() -> io::Result<()> {
    anew(&[])
}

/// As [`let_waiting_threads_sleep`], and keeps freed memory for the next tensor: for a process whose work is the same over
/// and over, and that ends after it.
///
/// # Errors
/// As [`let_waiting_threads_sleep`].
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
