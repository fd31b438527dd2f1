//! The order of faults, from a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_pcg::Pcg64;

use crate::{
    actions::{Action, Target},
    proxy::Mode,
};

/// All faults. Each is part of the first round.
pub(crate) const ALL: [Action; 23] = [
    Action::Kill(Target::Api),
    Action::Kill(Target::Scheduler),
    Action::Kill(Target::Trainer),
    Action::Kill(Target::Serving),
    Action::Stop(Target::Api),
    Action::Stop(Target::Scheduler),
    Action::Stop(Target::Trainer),
    Action::Stop(Target::Serving),
    Action::SkewClock(Target::Api, "+3d"),
    Action::SkewClock(Target::Scheduler, "+2h"),
    Action::SkewClock(Target::Trainer, "-3d"),
    Action::SkewClock(Target::Serving, "-2h"),
    Action::KillDuringUpload,
    Action::Store(Mode::Answer(503, "SlowDown")),
    Action::Store(Mode::Answer(412, "PreconditionFailed")),
    Action::Store(Mode::Answer(409, "OperationAborted")),
    Action::Store(Mode::Slow),
    Action::Store(Mode::Cut),
    Action::EndSessions,
    Action::RestartDatabase,
    Action::ExhaustPools,
    Action::CancelWhilePublishing,
    Action::FillDisk,
];

/// The targets of kills after the first round, trainers most often.
const KILLS: [Target; 6] =
    [Target::Trainer, Target::Trainer, Target::Trainer, Target::Scheduler, Target::Api, Target::Serving];

/// The shortest and the longest pause before a fault, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..800;

/// An endless sequence of faults: first all, shuffled, then half of them kills.
pub(crate) struct Schedule {
    random: Pcg64,
    first: Vec<Action>,
}

impl Schedule {
    /// Creates the sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Pcg64::seed_from_u64(seed);
        let mut first = ALL.to_vec();
        first.shuffle(&mut random);
        Self { random, first }
    }

    /// Returns the next fault, and the pause before it.
    pub(crate) fn next_fault(&mut self) -> (Action, Duration) {
        let action = match self.first.pop() {
            Some(action) => action,
            None if self.random.random_bool(0.5) => Action::Kill(KILLS[self.random.random_range(0..KILLS.len())]),
            None => ALL[self.random.random_range(0..ALL.len())],
        };
        (action, Duration::from_millis(self.random.random_range(PAUSE_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(seed: u64, count: usize) -> Vec<(Action, Duration)> {
        let mut schedule = Schedule::new(seed);
        (0..count).map(|_| schedule.next_fault()).collect()
    }

    #[test]
    fn a_seed_gives_one_order_that_begins_with_every_fault() {
        let order = actions(7, 200);
        assert_eq!(order, actions(7, 200));
        assert_ne!(order, actions(8, 200));
        for action in ALL {
            assert!(order[..ALL.len()].iter().any(|(first, _)| *first == action), "{action:?}");
        }
        let kills = order.iter().filter(|(action, _)| matches!(action, Action::Kill(_))).count();
        assert!((70..170).contains(&kills), "{kills}");
    }
}
