//! The LR range test, run before the first step: increasing rates on a temporary adapter, until the loss diverges.
//!
//! Source: Smith, arXiv:1506.01186, §3.3 (the test). The smoothing, its bias correction and the end at four times the
//! best loss are those of fastai's `LRFinder`, and so is the choice: a tenth of the rate at the lowest loss.

use attune_domain::run::RunEvent;
use attune_model::optim::gradients::Gradients;

use crate::{
    checkpoints::restore::restore, context::RunContext, data::sampler::Sampler, error::TrainerError,
    objective::interface::Split, session::Session, step::accumulate,
};

/// The lowest rate. The rates are evenly spaced on a logarithmic scale, eight per decade.
const FIRST: f64 = 1e-6;
/// The highest rate.
const LAST: f64 = 1e-1;
/// The number of rates.
const TRIED: u32 = 41;
/// The maximum number of rows per rate. Few, because the whole test should cost less than a tenth of a small job; the
/// smoothing compensates for the noise.
const ROWS: u32 = 4;
/// The decay of the exponential moving average. It averages over about five rates, two thirds of a decade.
const KEPT: f64 = 0.8;
/// The test ends when the smoothed loss is this multiple of its lowest value.
const ASTRAY: f64 = 4.0;
/// The chosen share of the rate at the lowest loss. That rate itself is too high for a whole run, since Adam's steps
/// add up.
const SHARE: f64 = 0.1;
/// The minimum relative decrease of the loss. With less, the test shows only noise.
const FALL: f64 = 0.01;
/// The range of the chosen rate: a twentieth to ten times the default. A result outside it reflects some forty small
/// batches more than the job.
const ALLOWED: (f64, f64) = (1e-5, 2e-3);
/// Separates the test's random stream from that of the training (any number would do).
const STREAM: u64 = 0x72_616e_6765;

/// Finds a learning rate and reports it. The session is not changed: the test has an adapter of its own, so a job that
/// requests this rate explicitly gives the same adapter to the last bit. Returns `None` if a stop was requested.
///
/// # Errors
/// [`TrainerError::Model`], [`TrainerError::Ended`]; those of [`restore`].
pub(crate) fn find(
    session: &Session,
    gradients: &mut Gradients,
    context: &RunContext,
) -> Result<Option<f64>, TrainerError> {
    let Some(curve) = curve(session, gradients, context)? else { return Ok(None) };
    gradients.clear()?;
    let (learning_rate, reason) = choose(&curve, session.spec.train.trainer.learning_rate);
    tracing::info!(learning_rate, "{reason}");
    context.events.send(RunEvent::LearningRateFound { learning_rate, curve, reason })?;
    Ok(Some(learning_rate))
}

/// Runs the test. Returns the rates with the smoothed loss at each.
fn curve(
    session: &Session,
    gradients: &mut Gradients,
    context: &RunContext,
) -> Result<Option<Vec<(f64, f64)>>, TrainerError> {
    let train = &session.spec.train;
    let (mut adapter, mut optimizer, _) = restore(&session.origin, &session.spec, &session.decoder, &context.scratch)?;
    let rows = train.hyperparameters.batch_size.min(ROWS) as usize;
    let mut sampler = Sampler::new(session.rows.len(), rows, train.seed ^ STREAM);
    let mut smooth = Smooth::default();
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for tried in 0..TRIED {
        let rate = FIRST * (LAST / FIRST).powf(f64::from(tried) / f64::from(TRIED - 1));
        let rows = sampler.batch(u64::from(tried) + 1);
        let place = (&adapter, STREAM + u64::from(tried));
        let Some((loss, _)) = accumulate(session, place, &rows, (&mut *gradients, context))? else { return Ok(None) };
        let norm = gradients.clip(train.trainer.max_grad_norm)?;
        if !(loss.sum.is_finite() && norm.is_finite()) {
            break;
        }
        let smoothed = smooth.see(session.objective.metrics(loss, Split::Training).loss);
        curve.push((rate, smoothed));
        let lowest = curve.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        if smoothed > ASTRAY * lowest || optimizer.step(&mut adapter, gradients, rate).is_err() {
            break;
        }
    }
    Ok(Some(curve))
}

/// An exponential moving average with bias correction.
#[derive(Default)]
struct Smooth {
    sum: f64,
    seen: i32,
}

impl Smooth {
    fn see(&mut self, loss: f64) -> f64 {
        self.seen += 1;
        self.sum = KEPT * self.sum + (1.0 - KEPT) * loss;
        self.sum / (1.0 - KEPT.powi(self.seen))
    }
}

/// Returns the chosen rate and the reason: a tenth of the rate at the lowest loss, clamped to the allowed range and
/// rounded to two digits (more would be noise, and two survive every JSON parser); the default, if the loss did not
/// decrease.
fn choose(curve: &[(f64, f64)], default: f64) -> (f64, String) {
    let lowest = curve.iter().copied().min_by(|one, other| one.1.total_cmp(&other.1));
    let (Some(first), Some(last), Some((rate, loss))) = (curve.first(), curve.last(), lowest) else {
        return (default, format!("A range test found no finite loss; the default, {default:?}, stays"));
    };
    let tried = format!("A range test tried {} learning rates from {FIRST:?} to {:.1e}", curve.len(), last.0);
    if loss > (1.0 - FALL) * first.1 {
        let reason = format!("{tried}, and none reduced the loss of {:.4}; the default, {default:?}, stays", first.1);
        return (default, reason);
    }
    let chosen = two_digits((SHARE * rate).clamp(ALLOWED.0, ALLOWED.1));
    let bound = match SHARE * rate {
        tenth if tenth < ALLOWED.0 => ", raised to the minimum",
        tenth if tenth > ALLOWED.1 => ", lowered to the maximum",
        _ => "",
    };
    (chosen, format!("{tried}: the loss was lowest, {loss:.4}, at {rate:.1e}; chosen is a tenth{bound}, {chosen:?}"))
}

/// Rounds to two significant digits.
fn two_digits(number: f64) -> f64 {
    format!("{number:.1e}").parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a curve over all rates whose loss at the rate `10^x` is `loss(x)`.
    fn curve(loss: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..=40).map(|i| -6.0 + f64::from(i) / 8.0).map(|x| (10f64.powf(x), loss(x))).collect()
    }

    #[test]
    fn a_tenth_of_the_rate_at_the_lowest_loss_is_chosen() {
        let (rate, reason) = choose(&curve(|x| 2.0 + (x + 2.5).abs()), 2e-4);
        assert_eq!(rate, 3.2e-4);
        assert_eq!(
            reason,
            "A range test tried 41 learning rates from 1e-6 to 1.0e-1: the loss was lowest, 2.0000, at 3.2e-3; chosen \
             is a tenth, 0.00032"
        );
    }

    #[test]
    fn the_choice_stays_within_its_bounds() {
        let (low, why) = choose(&curve(|x| 2.0 + (x + 5.0).abs()), 2e-4);
        assert!(low == 1e-5 && why.contains("raised"), "{low} {why}");
        let (high, why) = choose(&curve(|x| 2.0 - x), 2e-4);
        assert!(high == 2e-3 && why.contains("lowered"), "{high} {why}");
    }

    #[test]
    fn a_loss_that_never_falls_leaves_the_default() {
        let (rate, why) = choose(&curve(|x| 2.0 + (x + 6.0)), 2e-4);
        assert!(rate == 2e-4 && why.contains("none reduced the loss of 2.0000"), "{why}");
        assert_eq!(choose(&[], 2e-4).0, 2e-4);
    }

    #[test]
    fn the_smoothed_loss_begins_with_the_first() {
        let mut smooth = Smooth::default();
        assert!((smooth.see(3.0) - 3.0).abs() < 1e-12);
        let second = smooth.see(0.0);
        assert!((second - 3.0 * 0.16 / 0.36).abs() < 1e-12, "{second}");
    }
}
