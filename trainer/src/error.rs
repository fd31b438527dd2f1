//! The errors that end a run without an adapter: one variant per kind of remedy, with the messages that users read.

use std::{error::Error, io, path::Path};

use attune_domain::{
    bytes::Bytes,
    run::{CONTRACT_VERSION, RunEvent},
};
use attune_gguf::export::error::ExportError;
use attune_model::error::ModelError;
use attune_node::NodeError;
use attune_text::{
    error::TextError,
    row_stats::{NAMED_LINES, RowsError},
};

/// The reason that a run ends without an adapter.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The platform has ended the run or assigned it to another trainer. No further event may be sent.
    #[error("the platform has ended this run, or assigned it to another trainer")]
    Ended,
    /// The run stopped as the platform requested.
    #[error("stopped after step {step}")]
    Stopped {
        /// The number of completed optimizer steps.
        step: u64,
    },
    /// The trainer and the platform have different versions of the run contract.
    #[error(
        "this trainer implements version {CONTRACT_VERSION} of the run contract, and the platform version {theirs}"
    )]
    ContractVersion {
        /// The platform's contract version.
        theirs: u32,
    },
    /// Rows that cannot be trained on.
    #[error("{param}: {why}")]
    Data {
        /// The request's field that names the file.
        param: &'static str,
        /// The rejected lines and the reasons.
        why: RowsError,
    },
    /// A loss, a gradient norm or a factor is NaN or infinite.
    #[error(
        "step {}: {} is not a finite number{}; the step was not taken. Rows (by line): {}",
        .0.step, .0.what, if .0.again { ", at half the learning rate too" } else { "" }, .0.named_lines()
    )]
    NonFinite(NonFinite),
    /// An allocation failed.
    #[error("out of memory: {predicted} predicted, {available} available now, {peak} used at the peak")]
    OutOfMemory {
        /// The peak that the plan predicted.
        predicted: Bytes,
        /// The memory that the machine has available.
        available: Bytes,
        /// The process's peak resident memory.
        peak: Bytes,
    },
    /// The checkpoint is damaged or belongs to another job.
    #[error("cannot resume from the checkpoint: {0}")]
    Checkpoint(String),
    /// The adapter that the job continues from does not fit the job.
    #[error("the adapter to continue from cannot be used: {0}")]
    ContinueFrom(String),
    /// The published adapter's logits differ from those of the trained adapter.
    #[error("the published adapter differs from the trained one: {0}")]
    Gate(String),
    /// The form of an export cannot hold the model, or the written file is not what it should be.
    #[error("the export cannot be written: {0}")]
    Export(String),
    /// A GGUF file cannot be written.
    #[error(transparent)]
    Gguf(ExportError),
    /// A network or disk error.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// An error of a tensor file, a model configuration, or libtorch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// An internal error.
    #[error("{0}")]
    Internal(String),
}

impl TrainerError {
    /// Converts an I/O error at `path`, with a variant of its own for a full disk.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let told = NodeError::io(path);
        move |source| Self::Node(told(source))
    }

    /// Converts the error of a GGUF file. An error of the file's weights is one of this crate.
    pub(crate) fn of_gguf(error: ExportError) -> Self {
        match error {
            ExportError::Weights(why) => match why.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Gguf(ExportError::Weights(other)),
            },
            other => Self::Gguf(other),
        }
    }

    /// Returns the run's last event, or `None` if no further event may be sent.
    #[must_use]
    pub fn last_event(&self) -> Option<RunEvent> {
        match self {
            Self::Ended | Self::Node(NodeError::Ended { .. }) => None,
            Self::Stopped { step } => Some(RunEvent::Stopped { step: *step }),
            Self::OutOfMemory { peak, .. } => {
                Some(RunEvent::OutOfMemory { message: in_full(self), peak_memory: *peak })
            }
            failure => Some(RunEvent::Failed {
                code: failure.code().to_owned(),
                message: in_full(failure),
                param: failure.param().map(str::to_owned),
                passing: failure.is_passing(),
            }),
        }
    }

    /// Returns the stable, machine-readable error code.
    fn code(&self) -> &'static str {
        match self {
            Self::Ended | Self::Stopped { .. } => "stopped",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::ContractVersion { .. } => "contract_version",
            Self::Data { why, .. } if why.is_length() => "row_too_long",
            Self::Data { param: "validation_file", .. } => "invalid_validation_file",
            Self::Data { .. } => "invalid_training_file",
            Self::NonFinite(_) => "non_finite_loss",
            Self::Checkpoint(_) => "invalid_checkpoint",
            Self::ContinueFrom(_) => "invalid_continue_from",
            Self::Gate(_) => "publish_gate",
            _ if self.is_disk_full() => "disk_full",
            Self::Export(_) | Self::Gguf(_) => "unsupported_export",
            Self::Node(_) => "transfer_failed",
            Self::Model(ModelError::Torch(_) | ModelError::Input(_)) | Self::Internal(_) => "internal",
            Self::Model(_) | Self::Text(_) => "invalid_base_model",
        }
    }

    /// Returns whether another attempt may succeed, on this node or another: the disk was full, or a service was
    /// unavailable for longer than the retry limit. A 403 means that a presigned URL has expired; the next run gets new
    /// ones.
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

    /// Returns whether an allocation failed: libtorch's, or one that the operating system refused.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        if matches!(self, Self::Model(refusal) if refusal.is_out_of_memory()) {
            return true;
        }
        self.has_io_cause(io::ErrorKind::OutOfMemory)
    }

    /// Returns whether any error in the chain is a full disk. Some libraries pass on only its message.
    fn is_disk_full(&self) -> bool {
        if matches!(self, Self::Node(NodeError::DiskFull { .. })) {
            return true;
        }
        self.has_io_cause(io::ErrorKind::StorageFull)
            || self.causes().any(|error| error.to_string().contains("No space left on device"))
    }

    /// Returns whether an error of the operating system in the chain has this kind.
    fn has_io_cause(&self, kind: io::ErrorKind) -> bool {
        self.causes().any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind))
    }

    /// Returns the error and the chain of its causes.
    fn causes(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        std::iter::successors(Some(self as &(dyn Error + 'static)), |&error| error.source())
    }
}

/// A NaN or infinite value, in a step that was therefore not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonFinite {
    /// The step that was not applied.
    pub step: u64,
    /// The name of the value: the loss, the gradients' norm, a factor.
    pub what: String,
    /// The file's lines that the step trained on, sorted.
    pub lines: Vec<u64>,
    /// `true` if the run has already rolled back once.
    pub again: bool,
}

impl NonFinite {
    /// Returns the first lines, comma-separated, for a message.
    #[must_use]
    pub fn named_lines(&self) -> String {
        let mut named: Vec<String> = self.lines.iter().take(NAMED_LINES).map(u64::to_string).collect();
        if self.lines.len() > NAMED_LINES {
            named.push("…".into());
        }
        named.join(", ")
    }
}

/// Formats an error and its causes as one line.
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

/// Removes the call stack that libtorch appends to its messages, which does not help the user.
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
    fn a_full_disk_has_its_own_code_wherever_it_was_met() {
        let path = Path::new("adapter_model.safetensors");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(code(&TrainerError::io(path)(full())), "disk_full");
        let told = ModelError::Io { path: path.into(), source: full() };
        assert_eq!(code(&told.into()), "disk_full");
        let written = ExportError::Write { path: path.into(), source: full() };
        assert_eq!(code(&TrainerError::of_gguf(written)), "disk_full");
        let said = ModelError::File { path: path.into(), why: "No space left on device (os error 28)".into() };
        assert_eq!(code(&said.into()), "disk_full");
    }

    #[test]
    fn an_export_that_is_stopped_while_it_reads_weights_is_stopped() {
        let stopped = ExportError::Weights(Box::new(TrainerError::Stopped { step: 0 }));
        assert_eq!(TrainerError::of_gguf(stopped).last_event(), Some(RunEvent::Stopped { step: 0 }));
        assert_eq!(code(&TrainerError::Export("x".into())), "unsupported_export");
    }

    #[test]
    fn a_lack_of_memory_is_reported_with_its_numbers() {
        let (predicted, available, peak) = (Bytes::mib(400), Bytes::mib(10), Bytes::mib(500));
        let told = TrainerError::OutOfMemory { predicted, available, peak }.last_event();
        let message = "out of memory: 400.0 MiB predicted, 10.0 MiB available now, 500.0 MiB used at the peak".into();
        assert_eq!(told, Some(RunEvent::OutOfMemory { message, peak_memory: peak }));

        let refused = io::Error::from(io::ErrorKind::OutOfMemory);
        let refused = ModelError::Io { path: "model.safetensors".into(), source: refused };
        assert!(TrainerError::from(refused).is_out_of_memory());
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let full = ModelError::Io { path: "model.safetensors".into(), source: full };
        assert!(!TrainerError::from(full).is_out_of_memory());
    }

    #[test]
    fn a_user_reads_no_call_stack() {
        let said =
            "can't allocate memory\nException raised from alloc_cpu at x.cpp:1 (most recent call first):\nframe #0";
        assert_eq!(without_frames(said), "can't allocate memory");
    }

    #[test]
    fn a_run_that_was_revoked_says_nothing_more() {
        let taken = TrainerError::from(NodeError::Ended { what: "POST /internal/run/blobs".into() });
        assert_eq!(taken.last_event(), None);
    }

    #[test]
    fn a_failure_shows_its_causes_and_the_field() {
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
