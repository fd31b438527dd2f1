//! A learning rate, found before the first step: rates that rise step by step, on an adapter that is thrown away, until
//! the loss goes astray.
//!
//! Source: Smith, arXiv:1506.01186, §3.3 (the test); the smoothing, its correction and the end at four times the best loss
//! as in fastai's `LRFinder`, and its rule, a tenth of the rate at the lowest loss.

use attune_domain::run::RunEvent;
use attune_model::optim::gradients::Gradients;

use crate::{
    checkpoints::restore::restore, context::RunContext, data::sampler::Sampler, error::TrainerError, session::Session,
    step::accumulate,
};

/// The rates tried: from the first to the last, evenly on a logarithmic scale. Eight to a decade.
const FIRST: f64 = 1e-6;
const LAST: f64 = 1e-1;
const TRIED: u32 = 41;
/// Rows of a try, at most. Few, as the whole test should cost less than a tenth of a small job; the smoothing makes up
/// for it.
const ROWS: u32 = 4;
/// What the smoothed loss keeps of itself from try to try: it looks back over about five, two thirds of a decade.
const KEPT: f64 = 0.8;
/// The test ends where the smoothed loss is so many times its lowest.
const ASTRAY: f64 = 4.0;
/// At the lowest loss the rate is already too high to go on with: Adam's steps add up over a whole run.
const SHARE: f64 = 0.1;
/// The loss must fall by this share, or the test has shown nothing but noise.
const FALL: f64 = 0.01;
/// What may be chosen: a twentieth to ten times of the default. What lies outside says more about forty small batches
/// than about the job.
const ALLOWED: (f64, f64) = (1e-5, 2e-3);
/// Sets the order of rows apart from that of the training (any number would do).
const STREAM: u64 = 0x72_616e_6765;

/// Finds a rate and says it. The session is not changed: the adapter of the test is its own, so a job with this rate
/// given gives the same adapter to the last bit. `None`: a stop was asked for.
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
    let (learning_rate, reason) = choose(&curve, session.spec.train.learning_rate);
    tracing::info!(learning_rate, "{reason}");
    context.voice.say(RunEvent::LearningRateFound { learning_rate, curve, reason })?;
    Ok(Some(learning_rate))
}

/// Rates and the smoothed loss at each.
fn curve(
    session: &Session,
    gradients: &mut Gradients,
    context: &RunContext,
) -> Result<Option<Vec<(f64, f64)>>, TrainerError> {
    let train = &session.spec.train;
    let (mut adapter, mut optimizer, _) = restore(&session.origin, &session.spec, &session.decoder, &context.scratch)?;
    let rows = train.effective_batch_size.min(ROWS) as usize;
    let mut sampler = Sampler::new(session.rows.len(), rows, train.seed ^ STREAM);
    let mut smooth = Smooth::default();
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for tried in 0..TRIED {
        let rate = FIRST * (LAST / FIRST).powf(f64::from(tried) / f64::from(TRIED - 1));
        let rows = sampler.batch(u64::from(tried) + 1);
        let place = (&adapter, STREAM + u64::from(tried));
        let Some((loss, _)) = accumulate(session, place, &rows, (&mut *gradients, context))? else { return Ok(None) };
        let norm = gradients.clip(train.max_grad_norm)?;
        if !(loss.sum.is_finite() && norm.is_finite()) {
            break;
        }
        let smoothed = smooth.see(loss.mean());
        curve.push((rate, smoothed));
        let lowest = curve.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        if smoothed > ASTRAY * lowest || optimizer.step(&mut adapter, gradients, rate).is_err() {
            break;
        }
    }
    Ok(Some(curve))
}

/// An exponential mean, corrected for its beginning at zero.
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

/// A tenth of the rate at the lowest loss, within bounds and with two digits (more would be noise, and two are the same in
/// every JSON); the default, where the loss did not fall. And why, in a sentence.
fn choose(curve: &[(f64, f64)], default: f64) -> (f64, String) {
    let lowest = curve.iter().copied().min_by(|one, other| one.1.total_cmp(&other.1));
    let (Some(first), Some(last), Some((rate, loss))) = (curve.first(), curve.last(), lowest) else {
        return (default, format!("A range test met no finite loss; the default, {default:?}, stays"));
    };
    let tried = format!("A range test tried {} learning rates from {FIRST:?} to {:.1e}", curve.len(), last.0);
    if loss > (1.0 - FALL) * first.1 {
        let reason =
            format!("{tried}, and none brought the loss of {:.4} down; the default, {default:?}, stays", first.1);
        return (default, reason);
    }
    let chosen = two_digits((SHARE * rate).clamp(ALLOWED.0, ALLOWED.1));
    let bound = match SHARE * rate {
        tenth if tenth < ALLOWED.0 => ", raised to the least that is allowed",
        tenth if tenth > ALLOWED.1 => ", lowered to the most that is allowed",
        _ => "",
    };
    (chosen, format!("{tried}: the loss was lowest, {loss:.4}, at {rate:.1e}; chosen is a tenth{bound}, {chosen:?}"))
}

/// The nearest number of two digits.
fn two_digits(number: f64) -> f64 {
    format!("{number:.1e}").parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve over all rates whose loss at the rate `10^x` is `loss(x)`.
    fn curve(loss: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..=40).map(|i| -6.0 + f64::from(i) / 8.0).map(|x| (10f64.powf(x), loss(x))).collect()
    }

    #[test]
    fn a_tenth_of_the_rate_at_the_lowest_loss_is_chosen() {
        let (rate, reason) = choose(&curve(|x| 2.0 + (x + 2.5).abs()), 2e-4);
        assert_eq!(rate, 3.2e-4);
        assert_eq!(
            reason,
            "A range test tried 41 learning rates from 1e-6 to 1.0e-1: the loss was lowest, 2.0000, at 3.2e-3; chosen is \
             a tenth, 0.00032"
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
        assert!(rate == 2e-4 && why.contains("none brought the loss of 2.0000 down"), "{why}");
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
