//! Backoff between attempts of a job that made no progress, and the maximum number of attempts that end through no
//! fault of the job.

/// The pause in seconds after the first attempt without a new checkpoint.
pub const FIRST_PAUSE_SECONDS: u32 = 5;

/// The maximum pause in seconds.
pub const LONGEST_PAUSE_SECONDS: u32 = 120;

/// The maximum number of consecutive attempts without a new checkpoint that end through no fault of the job; after that
/// it fails anyway. With the pauses between them that takes three hours.
pub const MOST_SETBACKS: i32 = 100;

/// Returns the pause after `in_a_row` attempts without a new checkpoint: none after an attempt that made one, then 5,
/// 10, 20 … seconds.
#[must_use]
pub fn pause_seconds(in_a_row: u32) -> u32 {
    match in_a_row {
        0 => 0,
        n => FIRST_PAUSE_SECONDS.saturating_mul(1 << (n - 1).min(16)).min(LONGEST_PAUSE_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_a_pause_between_attempts_doubles_up_to_its_bound() {
        let pauses: Vec<u32> = [0, 1, 2, 3, 5, 6, 100, u32::MAX].into_iter().map(pause_seconds).collect();
        assert_eq!(pauses, [0, 5, 10, 20, 80, 120, 120, 120]);
    }
}
