//! The actions of fail points, from the environment.
//!
//! `ATTUNE_FAILPOINTS` is a list, separated by semicolons, of `NAME:SIDE=ACTION` and `GUARD=off`. The side is `before`
//! or `after`; the action is `kill` or `stop`, or `kill@3`: the third time that this process reaches it. With
//! `ATTUNE_FAILPOINTS_ONCE=FOLDER`, each acts in the first process only, which leaves a file `NAME:SIDE` in the folder.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{LazyLock, Mutex, PoisonError},
};

use nix::sys::signal::{Signal, raise};

use super::{FailPoint, Guard, Side};

/// An action, and the number of times that the process passes the fail point before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action {
    signal: Signal,
    passes: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Switches {
    actions: HashMap<(FailPoint, Side), Action>,
    off: Vec<Guard>,
}

impl Switches {
    /// Parses the list.
    ///
    /// # Errors
    /// An entry names no fail point and no guard, or no action.
    fn parse(text: &str) -> Result<Self, String> {
        let mut switches = Self::default();
        for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
            let wrong = || format!("{entry}: neither `NAME:SIDE=ACTION` nor `GUARD=off`");
            let (name, action) = entry.split_once('=').ok_or_else(wrong)?;
            match name.split_once(':') {
                Some((point, side)) => {
                    let place = (point.parse().map_err(|_| wrong())?, side.parse().map_err(|_| wrong())?);
                    switches.actions.insert(place, Action::parse(action).ok_or_else(wrong)?);
                }
                None if action == "off" => switches.off.push(name.parse().map_err(|_| wrong())?),
                None => return Err(wrong()),
            }
        }
        Ok(switches)
    }
}

impl Action {
    fn parse(text: &str) -> Option<Self> {
        let (name, nth) = text.split_once('@').unwrap_or((text, "1"));
        let signal = match name {
            "kill" => Signal::SIGKILL,
            "stop" => Signal::SIGSTOP,
            _ => return None,
        };
        Some(Self { signal, passes: nth.parse::<u32>().ok()?.checked_sub(1)? })
    }
}

/// The switches of this process.
static SWITCHES: LazyLock<Mutex<Switches>> = LazyLock::new(|| {
    let switches = Switches::parse(&variable("ATTUNE_FAILPOINTS").unwrap_or_default());
    Mutex::new(switches.unwrap_or_else(|why| {
        tracing::error!("ATTUNE_FAILPOINTS: {why}; no fail point is active");
        Switches::default()
    }))
});

#[expect(clippy::disallowed_methods, reason = "a test's switch in every program, which is no configuration")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn switches() -> std::sync::MutexGuard<'static, Switches> {
    SWITCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn reach(point: FailPoint, side: Side) {
    let signal = {
        let mut switches = switches();
        let Some(action) = switches.actions.get_mut(&(point, side)) else { return };
        if action.passes > 0 {
            action.passes -= 1;
            return;
        }
        let signal = action.signal;
        switches.actions.remove(&(point, side));
        signal
    };
    if is_first(point, side) {
        // To this thread, so that it does not take another step.
        let _ = raise(signal);
    }
}

/// Returns whether no earlier process acted here; without a folder for the marks, true.
fn is_first(point: FailPoint, side: Side) -> bool {
    let Some(folder) = variable("ATTUNE_FAILPOINTS_ONCE") else { return true };
    let side: &str = side.into();
    let mark = PathBuf::from(folder).join(format!("{}:{side}", point.name()));
    File::create_new(mark).is_ok()
}

pub(super) fn is_off(guard: Guard) -> bool {
    switches().off.contains(&guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_points_and_guards() {
        let text = "scheduler.dispatch.claim:after=kill; trainer.report.send:before=stop@3;guard.run_lease=off";
        let switches = Switches::parse(text).unwrap();
        assert_eq!(switches.off, [Guard::RunLease]);
        let action = |point, side| switches.actions[&(point, side)];
        assert_eq!(action(FailPoint::DispatchClaim, Side::After), Action { signal: Signal::SIGKILL, passes: 0 });
        assert_eq!(action(FailPoint::ReportSend, Side::Before), Action { signal: Signal::SIGSTOP, passes: 2 });
        assert_eq!(Switches::parse("").unwrap(), Switches::default());
    }

    #[test]
    fn an_unknown_entry_is_an_error() {
        for wrong in ["x", "x:after=kill", "api.job.create=kill", "api.job.create:now=kill", "guard.run_lease=on"] {
            assert!(Switches::parse(wrong).unwrap_err().contains(wrong));
        }
        for wrong in ["api.job.create:after=exit", "api.job.create:after=kill@0"] {
            assert!(Switches::parse(wrong).is_err(), "{wrong}");
        }
    }
}
