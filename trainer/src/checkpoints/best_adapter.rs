//! The adapter with the lowest validation loss: kept during training, published at its end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attune_domain::run::{MessageLevel, RunEvent};
use attune_model::{adapter::LoraAdapter, io::tensor_file::TensorFile};
use serde_json::json;

use crate::{context::RunContext, error::TrainerError, session::Session};

/// Returns the path of the best adapter's factors. `step` is the step of that adapter.
pub(crate) fn best_file(scratch: &Path, step: u64) -> PathBuf {
    scratch.join(format!("best-{step}.safetensors"))
}

/// Records a validation for early stopping, and saves the factors if its loss is the lowest.
pub(crate) fn keep_if_best(session: &mut Session, loss: f64, context: &RunContext) -> Result<(), TrainerError> {
    let (train, step) = (&session.spec.train, session.progress.step);
    if train.trainer.early_stopping_patience == 0 {
        return Ok(());
    }
    let before = session.progress.early_stopping.best;
    if !session.progress.early_stopping.see(step, loss, train.trainer.early_stopping_threshold) {
        return Ok(());
    }
    session.adapter.save_factors(&best_file(&context.scratch, step))?;
    if let Some(before) = before {
        let path = best_file(&context.scratch, before.step);
        fs::remove_file(&path).map_err(TrainerError::io(&path))?;
    }
    Ok(())
}

/// Ends a training with early stopping: reports an early end, and selects the adapter with the lowest validation loss
/// for publishing.
pub(crate) fn conclude(session: &mut Session, context: &RunContext) -> Result<(), TrainerError> {
    let (train, progress) = (&session.spec.train, &session.progress);
    let Some(best) = progress.early_stopping.best else { return Ok(()) };
    let (step, patience) = (progress.step, train.trainer.early_stopping_patience);
    if progress.early_stopping.is_over(patience) && step < session.total_steps {
        let text = format!(
            "Training stopped early after step {step} of {}: {patience} validations in a row were not better by more \
             than {} than the best, {:.4} after step {}",
            session.total_steps, train.trainer.early_stopping_threshold, best.loss.0, best.step
        );
        let data = json!({"step": step, "total_steps": session.total_steps, "patience": patience,
            "best_step": best.step, "best_valid_loss": best.loss.0});
        tracing::info!(step, "{text}");
        context.events.send(RunEvent::Message { level: MessageLevel::Info, text, data })?;
    }
    if best.step == step {
        return Ok(());
    }
    let file = TensorFile::open(&best_file(&context.scratch, best.step))?;
    session.adapter = LoraAdapter::from_file(session.decoder.architecture(), train.adapter.clone(), &file)?;
    session.adapter_step = Some(best.step);
    let text = format!(
        "The adapter is that of step {}: its validation loss, {:.4}, is the lowest of the run",
        best.step, best.loss.0
    );
    let data = json!({"step": step, "best_step": best.step, "best_valid_loss": best.loss.0});
    context.events.send(RunEvent::Message { level: MessageLevel::Info, text, data })
}
