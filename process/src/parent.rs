//! A process that ends when its parent does: the parent holds the other end of our standard input and never writes to
//! it, so an end of file means that it is gone, however it went. Needs no signal and no `unsafe`, and works when the
//! parent is killed outright.

use std::io::{self, Read};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Starts a thread that ends this process when standard input ends. It is killed, not asked: an ordinary exit would run
/// libtorch's destructors beside threads that still compute.
///
/// Nothing stands between the end of the input and the kill, a log line least of all: whoever killed the parent took the
/// reader of our log along, so writing one may fail or block.
///
/// # Errors
/// No thread could be started.
pub fn exit_with_parent() -> io::Result<()> {
    std::thread::Builder::new().name("parent".into()).spawn(|| {
        wait_for_end(&mut io::stdin().lock());
        let _ = kill(Pid::this(), Signal::SIGKILL);
    })?;
    Ok(())
}

fn wait_for_end(input: &mut impl Read) {
    let mut ignored = [0; 256];
    loop {
        match input.read(&mut ignored) {
            Ok(0) => return,
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parent_writes_is_ignored_until_the_end() {
        wait_for_end(&mut io::Cursor::new(vec![0; 1000]));
    }
}
