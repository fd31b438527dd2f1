//! A job in the answer of `squeue --json`, and its state as that of a process.
//!
//! The form is that of Slurm 22.05 (OpenAPI 0.0.38); from 23.02 on, a state is a list with flags, and a number may be
//! `{"set": true, "number": 1}`. Source: `man squeue`, and <https://slurm.schedmd.com/rest_api.html>.

use attune_domain::run::{
    EXIT_INTERRUPTED,
    process::{EndCause, WaitKind},
};
use serde::Deserialize;

use crate::providers::provider::{Ended, Wait};

/// The whole answer.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    /// The cluster's jobs, also those that ended in the last minutes (`MinJobAge`).
    pub(super) jobs: Vec<Job>,
}

/// A job.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    /// The ID.
    pub(super) job_id: u64,
    /// The name, the process's handle.
    pub(super) name: Option<String>,
    /// The comment, which names the platform and the provider.
    pub(super) comment: Option<String>,
    /// The user.
    pub(super) user_id: Option<u32>,
    /// The state.
    pub(super) job_state: States,
    /// The reason of a state.
    pub(super) state_reason: Option<String>,
    /// The exit status.
    pub(super) exit_code: Option<ExitCode>,
    /// The time of the start, in Unix seconds.
    pub(super) start_time: Option<Number>,
    /// The time of the end, in Unix seconds.
    pub(super) end_time: Option<Number>,
}

/// The state of a job: a name, or names and flags.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum States {
    /// Before Slurm 23.02.
    One(String),
    /// The later form.
    Flagged(Vec<String>),
}

/// A number, or an object with one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    /// Before Slurm 23.02.
    Plain(i64),
    /// The later form.
    Optional {
        /// The number.
        number: i64,
    },
}

impl Number {
    const fn value(self) -> i64 {
        match self {
            Self::Plain(number) | Self::Optional { number } => number,
        }
    }
}

/// The exit status of a job.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum ExitCode {
    /// The status of `wait(2)`.
    Status(i64),
    /// The later form, and that of `sacct`.
    Parts {
        /// The exit status.
        return_code: Option<Number>,
        /// The signal.
        signal: Option<Signal>,
    },
}

/// The signal that ended a job.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Signal {
    #[serde(alias = "signal_id")]
    id: Option<Number>,
}

/// The state of a job as that of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    /// Waiting in the queue, or suspended, for this reason.
    Pending(Wait),
    /// Running, or being ended.
    Running,
    /// Ended.
    Ended(Ended),
}

/// The requested limits, which the exit message names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The time limit.
    pub(super) minutes: u32,
    /// The seconds before the time limit at which the program receives SIGTERM.
    pub(super) notice_seconds: u32,
}

impl Job {
    /// Returns the status; the exit message names neither a node nor output, since tenants read it.
    pub(super) fn status(&self, limits: Limits) -> Status {
        // While a flag is set, the job is not where its base state says.
        if self.is("COMPLETING") || self.is("STAGE_OUT") || self.is("SIGNALING") {
            return Status::Running;
        }
        for (state, cause, how) in ENDS {
            if self.is(state) {
                return Status::Ended(Ended::new(cause, format!("the Slurm job {how}")));
            }
        }
        if self.is("TIMEOUT") || self.is("DEADLINE") || self.was_noticed(limits) {
            let message = format!("the Slurm job reached its time limit of {} minutes", limits.minutes);
            return Status::Ended(Ended::new(EndCause::Deadline, message));
        }
        if self.is("COMPLETED") || self.is("FAILED") {
            return Status::Ended(self.exit());
        }
        if self.is("SUSPENDED") || self.is("STOPPED") {
            return Status::Pending(Wait::new(WaitKind::Held, "Slurm has suspended the job"));
        }
        if self.is("CONFIGURING") {
            return Status::Pending(Wait::new(WaitKind::NodeStarting, "Waiting for Slurm to start the node"));
        }
        if ["PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"].iter().any(|state| self.is(state)) {
            let (kind, reason) = self.reason();
            return Status::Pending(Wait::new(kind, format!("Waiting in the queue of Slurm: {reason}")));
        }
        Status::Running
    }

    fn is(&self, state: &str) -> bool {
        match &self.job_state {
            States::One(one) => one == state,
            States::Flagged(all) => all.iter().any(|one| one == state),
        }
    }

    /// Returns whether the program ended on the signal that precedes the time limit.
    fn was_noticed(&self, limits: Limits) -> bool {
        let (Some(start), Some(end)) = (self.start_time, self.end_time) else { return false };
        let seconds = i64::from(limits.minutes) * 60 - i64::from(limits.notice_seconds);
        // Slurm sends the signal up to a minute early.
        self.is("FAILED") && self.code().1 == TERM && end.value() - start.value() >= seconds - 60
    }

    /// Returns the exit status and the signal; 0: none.
    fn code(&self) -> (i64, i64) {
        match &self.exit_code {
            Some(ExitCode::Status(status)) => ((status >> 8) & 0xff, status & 0x7f),
            Some(ExitCode::Parts { return_code, signal }) => {
                let id = signal.as_ref().and_then(|signal| signal.id);
                (return_code.map_or(0, Number::value), id.map_or(0, Number::value))
            }
            None => (0, 0),
        }
    }

    fn exit(&self) -> Ended {
        match self.code() {
            // The shell's: the job is not at fault.
            (code @ (126 | 127), 0) => Ended::new(
                EndCause::NotStarted,
                format!("the Slurm job found no program in binaries_dir of its node (exit status: {code})"),
            ),
            // The trainer's: Slurm, or an operator, sent SIGTERM before the end.
            (code, 0) if code == i64::from(EXIT_INTERRUPTED) => {
                Ended::new(EndCause::Interrupted, "the Slurm job was interrupted by SIGTERM")
            }
            (code, 0) => Ended::program(format!("the Slurm job ended (exit status: {code})")),
            (_, KILL) => {
                Ended::program("the Slurm job was killed (signal: 9), possibly because its node ran out of memory")
            }
            (_, signal) => Ended::program(format!("the Slurm job ended (signal: {signal})")),
        }
    }

    /// Returns the reason of a pending job: known ones in words, others as Slurm names them.
    fn reason(&self) -> (WaitKind, String) {
        let name: String = self.state_reason.iter().flat_map(|reason| reason.chars()).take(64).collect();
        if let Some((_, kind, words)) = REASONS.iter().find(|(reason, ..)| *reason == name) {
            return (*kind, (*words).to_owned());
        }
        let is_limit = QUOTAS.iter().any(|start| name.starts_with(start));
        let plain = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        (if is_limit { WaitKind::Quota } else { WaitKind::Queued }, plain)
    }
}

const KILL: i64 = 9;
const TERM: i64 = 15;

/// The final states that need no exit code.
const ENDS: [(&str, EndCause, &str); 7] = [
    ("OUT_OF_MEMORY", EndCause::OutOfMemory, "was killed: it used more memory than it had requested"),
    ("NODE_FAIL", EndCause::NodeFailed, "ended because its node failed"),
    ("BOOT_FAIL", EndCause::NodeFailed, "ended because its node could not be started"),
    ("LAUNCH_FAILED", EndCause::NotStarted, "ended because its node could not start it"),
    ("PREEMPTED", EndCause::Preempted, "was preempted by another job"),
    ("REVOKED", EndCause::Disrupted, "was moved to another cluster"),
    ("CANCELLED", EndCause::Stopped, "was cancelled by an operator of the cluster"),
];

/// Frequent reasons of pending jobs.
const REASONS: [(&str, WaitKind, &str); 7] = [
    ("None", WaitKind::Queued, "Slurm has not considered the job yet"),
    ("Resources", WaitKind::Unschedulable, "the resources are in use"),
    ("Priority", WaitKind::Queued, "other jobs are ahead"),
    ("JobHeldAdmin", WaitKind::Held, "an operator of the cluster holds the job"),
    ("JobHeldUser", WaitKind::Held, "the job is held"),
    ("ReqNodeNotAvail", WaitKind::Unschedulable, "the nodes that it needs are not available"),
    ("PartitionDown", WaitKind::Unschedulable, "the partition is down"),
];

/// The starts of reasons that name a limit of the cluster, such as `QOSMaxGRESPerUser` and `AssocGrpCpuLimit`.
const QUOTAS: [&str; 4] = ["QOS", "Assoc", "PartitionNodeLimit", "PartitionTimeLimit"];
