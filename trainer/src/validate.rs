//! Validation: a forward pass over the held-out rows.

use attune_domain::run::RunEvent;
use attune_model::{batch::LossSum, train::loss};

use crate::{
    checkpoints::best_adapter,
    context::RunContext,
    data::{
        batches::{length_of, lines_of, packed},
        sampler::micro_batches,
    },
    error::{NonFinite, TrainerError},
    objective::interface::{LossMetrics, Split},
    session::Session,
};

/// Returns whether the current step is due for validation and has not been validated.
pub(crate) fn is_due(session: &Session) -> bool {
    let (every, step) = (session.spec.train.trainer.eval_every_steps, session.progress.step);
    let is_wanted = step == session.total_steps || (every > 0 && step.is_multiple_of(every));
    !session.validation.is_empty() && step > session.progress.evaluated_step && is_wanted
}

/// Validates, reports the loss, and updates early stopping. Returns `None` if a stop was requested.
///
/// # Errors
/// [`TrainerError::NonFinite`]: the loss is not finite. [`TrainerError::Model`], [`TrainerError::Ended`].
pub(crate) fn validate(session: &mut Session, context: &RunContext) -> Result<Option<f64>, TrainerError> {
    let (step, rows) = (session.progress.step, (0..session.validation.len()).collect());
    let mut all = LossSum::default();
    for part in micro_batches(rows, length_of(&session.validation), session.micro_batch_limits()) {
        if context.events.is_stop_requested()? {
            return Ok(None);
        }
        let batch = packed(session.objective, &session.validation, &part)?;
        let found = loss(&session.decoder, Some(&session.adapter), &batch)?;
        if !found.sum.is_finite() {
            let lines = lines_of(&session.validation, &part);
            let again = session.progress.went_back_at.is_some();
            let what = "the loss of the validation after it".into();
            return Err(TrainerError::NonFinite(NonFinite { step, what, lines, again }));
        }
        all += found;
    }
    let LossMetrics { loss: valid_loss, named } = session.objective.metrics(all, Split::Validation);
    tracing::info!(step, valid_loss, "validated over {} rows", session.validation.len());
    context.events.send(RunEvent::Evaluated { step, valid_loss, metrics: named })?;
    session.progress.evaluated_step = step;
    best_adapter::keep_if_best(session, valid_loss, context)?;
    Ok(Some(valid_loss))
}
