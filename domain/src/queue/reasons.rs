//! Reasons to wait, as users read them.

use std::fmt;

use crate::{bytes::Bytes, offer::Refusal};

/// The reason why a job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// No offer can be used, even if it were idle; or there is no offer at all.
    NoOffer {
        /// The memory that the job needs.
        need: Bytes,
        /// A refusal for each offer, also if it were idle; empty if there is no offer, which may change.
        refusals: Vec<Refusal>,
    },
    /// The project runs as many jobs as it may.
    Quota {
        /// The number of running jobs, with those that start now or next.
        running: u32,
        /// Their maximum number.
        max_running: u32,
    },
    /// The project has used its node time of this month, or its running jobs are expected to use the rest.
    NodeHours {
        /// The node-seconds that are used.
        used: u64,
        /// The node-seconds that running jobs, with those that start now or next, are expected to use in this month.
        expected: u64,
        /// The maximum of a month, in node-seconds.
        max: u64,
    },
    /// The job waits for room on an offer: it is the head and has a reservation there, or replicas hold the memory.
    Room {
        /// The offer's name.
        offer: String,
        /// The memory that the job needs.
        need: Bytes,
        /// The free memory of the offer.
        free: Bytes,
        /// The number of additional runs that could start on the offer.
        free_slots: usize,
    },
    /// Preemptible runs are stopped for the job.
    Stopping {
        /// Their number.
        runs: usize,
    },
    /// Other jobs are ahead.
    Ahead {
        /// Their number.
        jobs: usize,
    },
}

impl WaitReason {
    /// Returns whether waiting cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NoOffer { refusals, .. } if !refusals.is_empty() && refusals.iter().all(Refusal::is_final))
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOffer { need, refusals } if refusals.is_empty() => {
                write!(f, "The job needs {need} of memory, and no provider offers a machine now")
            }
            Self::NoOffer { need, refusals } => {
                if refusals.iter().all(Refusal::is_memory) {
                    write!(f, "The job needs {need} of memory, and no machine has that much: ")?;
                } else {
                    f.write_str("No machine can run the job: ")?;
                }
                let refusals: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
                f.write_str(&refusals.join("; "))
            }
            Self::Quota { running, max_running } => write!(
                f,
                "The project has {running} running jobs of at most {max_running}; the job starts after one of them ends"
            ),
            Self::NodeHours { used, expected, max } => {
                write!(f, "The project has used {} of its {} node-hours of this month", Hours(*used), Hours(*max))?;
                if *expected > 0 {
                    write!(f, ", and its running jobs are expected to use {} more", Hours(*expected))?;
                }
                f.write_str("; the job starts in the next month, or after the maximum was raised")
            }
            Self::Room { offer, need, free, free_slots } => write!(
                f,
                "The job is next on {offer}: it needs {need} of memory and a slot, and {free} and {free_slots} slots \
                 are free"
            ),
            Self::Stopping { runs: 1 } => write!(f, "The job is next: 1 preemptible run is being stopped for it"),
            Self::Stopping { runs } => write!(f, "The job is next: {runs} preemptible runs are being stopped for it"),
            Self::Ahead { jobs: 1 } => write!(f, "1 job is ahead in the queue"),
            Self::Ahead { jobs } => write!(f, "{jobs} jobs are ahead in the queue"),
        }
    }
}

/// Seconds, printed as hours with two decimals.
struct Hours(u64);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.0 as f64 / 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_numbers() {
        let short = |offer: &str, mib| Refusal::TooSmall { offer: offer.into(), short_by: Bytes::mib(mib) };
        let need = Bytes::mib(100);
        let never = WaitReason::NoOffer { need, refusals: vec![short("a", 10), short("b", 20)] };
        let offline = WaitReason::NoOffer { need, refusals: Vec::new() };
        let room = WaitReason::Room { offer: "a".into(), need, free: Bytes::mib(50), free_slots: 2 };
        let shown = [
            (
                &never,
                "The job needs 100.0 MiB of memory, and no machine has that much: a has 10.0 MiB too little memory; b \
                 has 20.0 MiB too little memory",
            ),
            (&offline, "The job needs 100.0 MiB of memory, and no provider offers a machine now"),
            (&room, "The job is next on a: it needs 100.0 MiB of memory and a slot, and 50.0 MiB and 2 slots are free"),
            (
                &WaitReason::Quota { running: 3, max_running: 3 },
                "The project has 3 running jobs of at most 3; the job starts after one of them ends",
            ),
            (
                &WaitReason::NodeHours { used: 18_000, expected: 0, max: 16_200 },
                "The project has used 5.00 of its 4.50 node-hours of this month; the job starts in the next month, or \
                 after the maximum was raised",
            ),
            (
                &WaitReason::NodeHours { used: 3600, expected: 1800, max: 5400 },
                "The project has used 1.00 of its 1.50 node-hours of this month, and its running jobs are expected to \
                 use 0.50 more; the job starts in the next month, or after the maximum was raised",
            ),
            (&WaitReason::Stopping { runs: 2 }, "The job is next: 2 preemptible runs are being stopped for it"),
            (&WaitReason::Ahead { jobs: 1 }, "1 job is ahead in the queue"),
            (&WaitReason::Ahead { jobs: 12 }, "12 jobs are ahead in the queue"),
        ];
        for (reason, text) in shown {
            assert_eq!(reason.to_string(), text);
        }
        assert_eq!([never.is_final(), offline.is_final(), room.is_final()], [true, false, false]);
    }
}
