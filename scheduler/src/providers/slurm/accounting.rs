//! A job in the answer of `sacct --json`, which has those that `squeue` lists no more. It needs a cluster with
//! `slurmdbd`.
//!
//! The form is that of Slurm 22.05 and of the releases since. Source: `man sacct`, and
//! <https://slurm.schedmd.com/rest_api.html#v0.0.38_dbv0.0.38_job>.

use serde::Deserialize;

use super::job::{ExitCode, Job, Number, States};

/// The whole answer.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    /// The jobs.
    pub(super) jobs: Vec<Recorded>,
}

/// A job.
#[derive(Debug, Deserialize)]
pub(super) struct Recorded {
    job_id: u64,
    name: Option<String>,
    state: State,
    exit_code: Option<ExitCode>,
    time: Times,
}

#[derive(Debug, Deserialize)]
struct State {
    current: States,
}

#[derive(Debug, Deserialize)]
struct Times {
    start: Option<Number>,
    end: Option<Number>,
}

impl From<Recorded> for Job {
    fn from(recorded: Recorded) -> Self {
        Self {
            job_id: recorded.job_id,
            name: recorded.name,
            // The record has these only if the cluster is configured to keep them.
            comment: None,
            user_id: None,
            job_state: recorded.state.current,
            state_reason: None,
            exit_code: recorded.exit_code,
            start_time: recorded.time.start,
            end_time: recorded.time.end,
        }
    }
}
