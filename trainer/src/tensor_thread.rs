//! The thread of a task's tensor operations. Any failure on it, a panic inside libtorch included, becomes the run's
//! last event.

use std::any::Any;

use attune_domain::{bytes::Bytes, run::RunEvent};

use crate::{
    error::{TrainerError, in_full},
    memory,
};

/// Performs `work` on a thread of its own. An error of memory gets the `predicted` peak.
///
/// # Errors
/// Those of `work`; [`TrainerError::Internal`]: it panicked.
pub(crate) async fn perform(
    predicted: Bytes,
    work: impl FnOnce() -> Result<RunEvent, TrainerError> + Send + 'static,
) -> Result<RunEvent, TrainerError> {
    let span = tracing::Span::current();
    let working = tokio::task::spawn_blocking(move || span.in_scope(work));
    let outcome = working.await.unwrap_or_else(|fault| match fault.try_into_panic() {
        Ok(panic) => Err(TrainerError::Internal(format!("the trainer panicked: {}", words_of(&*panic)))),
        Err(fault) => Err(TrainerError::Internal(fault.to_string())),
    });
    outcome.map_err(|why| match why {
        refusal if refusal.is_out_of_memory() => {
            tracing::error!(refusal = in_full(&refusal), "memory ran out");
            TrainerError::OutOfMemory { predicted, available: memory::available(), peak: memory::peak() }
        }
        other => other,
    })
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
