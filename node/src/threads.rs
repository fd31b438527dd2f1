//! How libtorch's threads wait for each other.
//!
//! By default they spin for milliseconds at the end of each parallel loop. That pays on a machine of one's own. Where
//! other programs want the processors too, a thread that was put aside keeps the others spinning, at every one of
//! thousands of loops: a training step of 6 s took 100 s beside a busy compiler on two cores. Sleeping costs microseconds.

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// Decides it for libgomp and for LLVM's and Intel's runtime; whoever has set it keeps what was set.
const POLICY: &str = "OMP_WAIT_POLICY";

/// Lets waiting threads sleep. The OpenMP runtime reads its settings before `main`, so this process starts itself anew,
/// once, with the same arguments, process id and standard streams. Call it first.
///
/// # Errors
/// It could not be started anew; going on as before is slower, not wrong.
pub fn let_waiting_threads_sleep() -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "it is another library's setting, and decides whether to start anew")]
    let decided = env::var_os(POLICY).is_some();
    if decided {
        return Ok(());
    }
    Err(Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(POLICY, "passive").exec())
}
