//! Why a run ends without an adapter, a variant per thing that can be done about it, and the words that the user reads.

use std::{error::Error, io, path::Path};

use attune_domain::{
    bytes::Bytes,
    run::{CONTRACT_VERSION, RunEvent},
};
use attune_model::error::ModelError;
use attune_node::NodeError;
use attune_text::{
    error::TextError,
    tally::{NAMED_LINES, RowsError},
};

/// Why a run ends without an adapter.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The platform has ended the run or given it to another: nothing more may be said.
    #[error("the platform has ended this run, or given it to another trainer")]
    Ended,
    /// A stop was asked for, and obeyed.
    #[error("stopped after step {step}")]
    Stopped {
        /// Optimiser steps that are done.
        step: u64,
    },
    /// Trainer and platform are of different releases.
    #[error("this trainer speaks version {CONTRACT_VERSION} of the run contract, and the platform speaks {theirs}")]
    ContractVersion {
        /// What the platform speaks.
        theirs: u32,
    },
    /// Rows that cannot be trained on.
    #[error("{param}: {why}")]
    Data {
        /// The request's field.
        param: &'static str,
        /// Which lines, and why.
        why: RowsError,
    },
    /// The training has gone astray.
    #[error(
        "step {}: {} is not a finite number{}; the step was not taken. Rows (by line): {}",
        .0.step, .0.what, if .0.again { ", at half the learning rate too" } else { "" }, .0.named_lines()
    )]
    NonFinite(NonFinite),
    /// The memory ran out.
    #[error(
        "the memory ran out: {predicted} were predicted, {available} are available now, {peak} were used at the peak"
    )]
    OutOfMemory {
        /// By the plan.
        predicted: Bytes,
        /// What the machine could still give.
        available: Bytes,
        /// What the process had.
        peak: Bytes,
    },
    /// The checkpoint is not one of this run.
    #[error("the checkpoint cannot be gone on from: {0}")]
    Checkpoint(String),
    /// The adapter that the job continues from is not one that it can begin with.
    #[error("the adapter to continue from cannot be used: {0}")]
    ContinueFrom(String),
    /// What was written does not answer as what was trained.
    #[error("the published adapter is not the trained one: {0}")]
    Gate(String),
    /// A network or disk's refusal.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A tensor file, a configuration, or libtorch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A fault of ours.
    #[error("{0}")]
    Internal(String),
}

impl TrainerError {
    /// A disk's refusal, with a full disk told apart.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let told = NodeError::io(path);
        move |source| Self::Node(told(source))
    }

    /// The run's last event; `None` if nothing more may be said.
    #[must_use]
    pub fn last_event(&self) -> Option<RunEvent> {
        match self {
            Self::Ended | Self::Node(NodeError::Ended { .. }) => None,
            Self::Stopped { step } => Some(RunEvent::Stopped { step: *step }),
            failure => Some(RunEvent::Failed {
                code: failure.code().to_owned(),
                message: in_full(failure),
                param: failure.param().map(str::to_owned),
                passing: failure.is_passing(),
            }),
        }
    }

    /// For programs; stable.
    fn code(&self) -> &'static str {
        match self {
            Self::Ended | Self::Stopped { .. } => "stopped",
            Self::ContractVersion { .. } => "contract_version",
            Self::Data { why, .. } if why.is_length() => "row_too_long",
            Self::Data { param: "validation_file", .. } => "invalid_validation_file",
            Self::Data { .. } => "invalid_training_file",
            Self::NonFinite(_) => "non_finite_loss",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Checkpoint(_) => "invalid_checkpoint",
            Self::ContinueFrom(_) => "invalid_continue_from",
            Self::Gate(_) => "publish_gate",
            _ if self.is_disk_full() => "disk_full",
            Self::Node(_) => "transfer_failed",
            Self::Model(ModelError::Torch(_) | ModelError::Input(_)) | Self::Internal(_) => "internal",
            Self::Model(_) | Self::Text(_) => "invalid_base_model",
        }
    }

    /// Another attempt may do better, on this node or another: the disk was full, or the other side was away for longer
    /// than it is waited for. 403 is the answer to an address that is too old by now; the next run gets new ones.
    fn is_passing(&self) -> bool {
        match self {
            Self::Node(NodeError::Refused { status: 403, .. }) => true,
            Self::Node(why) if why.is_passing() => true,
            _ => self.code() == "disk_full",
        }
    }

    fn param(&self) -> Option<&'static str> {
        match (self, self.code()) {
            (Self::Data { param, .. }, _) => Some(param),
            (Self::ContinueFrom(_), _) => Some("continue_from"),
            (_, "invalid_base_model") => Some("model"),
            _ => None,
        }
    }

    /// Whichever library met the full disk; some of them hand on only its words.
    fn is_disk_full(&self) -> bool {
        if matches!(self, Self::Node(NodeError::DiskFull { .. })) {
            return true;
        }
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let full = error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull);
            if full || error.to_string().contains("No space left on device") {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// A number that is NaN or infinite, in a step that was therefore not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonFinite {
    /// The step that was not taken.
    pub step: u64,
    /// The name of the number: the loss, the gradients' norm, a factor.
    pub what: String,
    /// The file's lines that were at work, sorted.
    pub lines: Vec<u64>,
    /// The run has gone back once already.
    pub again: bool,
}

impl NonFinite {
    /// Returns the first lines, for a sentence.
    #[must_use]
    pub fn named_lines(&self) -> String {
        let mut named: Vec<String> = self.lines.iter().take(NAMED_LINES).map(u64::to_string).collect();
        if self.lines.len() > NAMED_LINES {
            named.push("…".into());
        }
        named.join(", ")
    }
}

/// An error with its causes, in one sentence.
#[must_use]
pub fn in_full(error: &dyn Error) -> String {
    let mut text = without_frames(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {}", without_frames(&error.to_string()));
        cause = error.source();
    }
    text
}

/// libtorch ends its messages with the call stack, which is no news to the user.
#[must_use]
pub fn without_frames(text: &str) -> String {
    text.split("\nException raised from ").next().unwrap_or(text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: &TrainerError) -> String {
        match error.last_event() {
            Some(RunEvent::Failed { code, .. }) => code,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_full_disk_has_its_own_code_whoever_met_it() {
        let path = Path::new("adapter_model.safetensors");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(code(&TrainerError::io(path)(full())), "disk_full");
        let told = ModelError::Io { path: path.into(), source: full() };
        assert_eq!(code(&told.into()), "disk_full");
        let said = ModelError::File { path: path.into(), why: "No space left on device (os error 28)".into() };
        assert_eq!(code(&said.into()), "disk_full");
    }

    #[test]
    fn a_user_reads_no_call_stack() {
        let said =
            "can't allocate memory\nException raised from alloc_cpu at x.cpp:1 (most recent call first):\nframe #0";
        assert_eq!(without_frames(said), "can't allocate memory");
    }

    #[test]
    fn a_run_that_was_taken_away_says_nothing_more() {
        let taken = TrainerError::from(NodeError::Ended { what: "POST /internal/run/blobs".into() });
        assert_eq!(taken.last_event(), None);
    }

    #[test]
    fn a_failure_tells_its_causes_and_the_field() {
        let missing = ModelError::Missing { name: "model.norm.weight".into(), place: "base".into() };
        let Some(RunEvent::Failed { code, message, param, passing: false }) = TrainerError::from(missing).last_event()
        else {
            panic!("a failure was expected");
        };
        assert_eq!((code.as_str(), param.as_deref()), ("invalid_base_model", Some("model")));
        assert!(message.contains("model.norm.weight"), "{message}");
    }

    #[test]
    fn a_non_finite_number_names_its_first_lines() {
        let found = NonFinite { step: 3, what: "the loss".into(), lines: (1..=40).collect(), again: false };
        assert!(found.named_lines().ends_with("31, 32, …"));
    }
}
