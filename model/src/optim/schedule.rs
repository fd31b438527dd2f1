//! Learning rate schedules: linear warmup from zero, then constant, linear or cosine decay to zero, with or without
//! restarts.
//!
//! Source: `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup`,
//! `get_cosine_with_hard_restarts_schedule_with_warmup` in transformers' `optimization.py`.

use attune_domain::spec::Schedule;

/// The parameters of a run's learning rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// The kind of decay after the warmup.
    pub schedule: Schedule,
    /// The peak learning rate.
    pub peak: f64,
    /// The number of warmup steps.
    pub warmup: u64,
    /// The total number of steps.
    pub steps: u64,
    /// The number of cosine cycles of [`Schedule::CosineWithRestarts`].
    pub num_cycles: u32,
}

/// Returns the learning rate of `step` (the first is 0).
#[must_use]
pub fn learning_rate(lr_schedule: LrSchedule, step: u64) -> f64 {
    let LrSchedule { schedule, peak, warmup, steps, num_cycles } = lr_schedule;
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    let factor = match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        Schedule::CosineWithRestarts if progress >= 1.0 => 0.0,
        Schedule::CosineWithRestarts => {
            0.5 * (1.0 + (std::f64::consts::PI * ((f64::from(num_cycles) * progress) % 1.0)).cos())
        }
    };
    peak * factor.max(0.0)
}

/// Returns the number of warmup steps for a ratio of `steps`, rounded up. Source: `TrainingArguments.get_warmup_steps`.
#[must_use]
pub fn warmup_steps(ratio: f64, steps: u64) -> u64 {
    (steps as f64 * ratio).ceil().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lr_schedule(schedule: Schedule, warmup: u64, steps: u64) -> LrSchedule {
        LrSchedule { schedule, peak: 1.0, warmup, steps, num_cycles: 2 }
    }

    #[test]
    fn rates_are_those_of_transformers() {
        // LambdaLR's values at steps 0, 1, 2, 5, 9 of 10 with 2 steps of warm-up, 2 cycles and a peak of 1.
        let rows = [
            (Schedule::Constant, [0.0, 0.5, 1.0, 1.0, 1.0]),
            (Schedule::Linear, [0.0, 0.5, 1.0, 0.625, 0.125]),
            (Schedule::Cosine, [0.0, 0.5, 1.0, 0.691_341_716_182_544_9, 0.038_060_233_744_356_625]),
            (Schedule::CosineWithRestarts, [0.0, 0.5, 1.0, 0.146_446_609_406_726_27, 0.146_446_609_406_726_27]),
        ];
        for (schedule, wanted) in rows {
            for (step, wanted) in [0, 1, 2, 5, 9].into_iter().zip(wanted) {
                let got = learning_rate(lr_schedule(schedule, 2, 10), step);
                assert!((got - wanted).abs() < 1e-12, "{schedule:?} {step}: {got}");
            }
        }
        assert_eq!(
            learning_rate(lr_schedule(Schedule::CosineWithRestarts, 2, 10), 6),
            1.0,
            "the second fall starts high"
        );
    }

    #[test]
    fn no_step_divides_by_zero() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::CosineWithRestarts] {
            for (step, warmup, steps) in [(0, 0, 0), (0, 0, 1), (1, 1, 1), (9, 2, 4)] {
                let rate = learning_rate(lr_schedule(schedule, warmup, steps), step);
                assert!((0.0..=1.0).contains(&rate), "{schedule:?} {step} {warmup} {steps}: {rate}");
            }
        }
        assert_eq!(warmup_steps(0.03, 100), 3);
        assert_eq!(warmup_steps(0.03, 101), 4);
    }
}
