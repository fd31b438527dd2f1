//! The exit of a process when its parent exits: the parent holds the other end of our standard input and never writes
//! to it, so an end of file means that it has exited, for any reason. This needs no signal and no `unsafe`, and works
//! when the parent is killed with SIGKILL.

use std::io::{self, Read};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::failpoint::Guard;

/// Starts a thread that kills this process when standard input ends. It uses SIGKILL: an ordinary exit would run
/// libtorch's destructors while other threads still compute.
///
/// Nothing runs between the end of the input and the kill, in particular no logging: the reader of our log may have
/// exited with the parent, so writing to it may fail or block.
///
/// # Errors
/// The error of starting the thread.
pub fn exit_with_parent() -> io::Result<()> {
    if !Guard::ExitWithParent.is_on() {
        return Ok(());
    }
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
