//! Percentiles, and rates within a window.

use std::time::Instant;

use crate::client::Answer;

/// Returns the smallest value with at least the share `p` of all values at or below it (the nearest-rank method); NaN
/// of none.
pub(crate) fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Returns the middle value, or the mean of the two middle ones; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Returns the tokens per second of all answers from `from` to `to`. The tokens of an answer after its first are
/// spread evenly over the time from the first to the last.
pub(crate) fn rate_between(answers: &[Answer], from: Instant, to: Instant) -> f64 {
    let tokens: f64 = answers
        .iter()
        .map(|answer| {
            let whole = (answer.last - answer.first).as_secs_f64();
            let part = answer.last.min(to).saturating_duration_since(answer.first.max(from)).as_secs_f64();
            if whole > 0.0 { (answer.tokens as f64 - 1.0) * part / whole } else { 0.0 }
        })
        .sum();
    tokens / to.saturating_duration_since(from).as_secs_f64()
}

/// Returns the tokens per second while all answers were sampled; NaN where they were not sampled at the same time.
pub(crate) fn common_rate(answers: &[Answer]) -> f64 {
    let from = answers.iter().map(|answer| answer.first).max();
    let to = answers.iter().map(|answer| answer.last).min();
    match (from, to) {
        (Some(from), Some(to)) if from < to => rate_between(answers, from, to),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn percentiles_are_values_and_medians_are_in_the_middle() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.95, 0.99, 1.0].map(|p| percentile(&values, p)), [1.0, 50.0, 95.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan() && median(&[]).is_nan());
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (2.0, 2.5));
    }

    #[test]
    fn tokens_outside_of_the_window_do_not_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let answer = |first, last, tokens| Answer { first: at(first), last: at(last), tokens, ..Answer::at(start) };
        let answers = [answer(0, 10, 101), answer(5, 15, 21)];
        assert!((rate_between(&answers, at(0), at(5)) - 10.0).abs() < 1e-9);
        assert!((rate_between(&answers, at(5), at(10)) - 12.0).abs() < 1e-9);
        assert!((common_rate(&answers) - 12.0).abs() < 1e-9);
        assert!(common_rate(&[answer(0, 1, 5), answer(2, 3, 5)]).is_nan());
        assert_eq!(rate_between(&[answer(1, 1, 1)], at(0), at(5)), 0.0);
    }
}
