//! The outcome of an attempt. No I/O: the caller passes the random number.

use std::time::{Duration, SystemTime};

use attune_outbound::client::{Answer, SendError};
use attune_store::webhooks::webhook_queue::Next;

/// Seconds between a failed attempt and the next one: ten attempts within 75 hours and 35 minutes.
///
/// | attempt | 2nd | 3rd | 4th | 5th | 6th | 7th | 8th | 9th | 10th |
/// |---|---|---|---|---|---|---|---|---|---|
/// | after | 5 s | 5 min | 30 min | 2 h | 5 h | 10 h | 14 h | 20 h | 24 h |
///
/// Source: the schedule that Standard Webhooks recommends.
pub(super) const DELAYS: [u32; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];

/// The share by which a delay is randomly longer or shorter, so that deliveries that failed together are not retried
/// together.
pub(super) const JITTER: f64 = 0.1;

/// The longest `Retry-After` that is honored.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// Returns the next step, and the error if the attempt failed. `failures`: earlier failed attempts; `roll`: from 0 to
/// 1.
pub(super) fn judge(sent: &Result<Answer, SendError>, failures: usize, roll: f64) -> (Next, Option<String>) {
    let (error, wait) = match sent {
        Ok(answer) if answer.status.is_success() => return (Next::Delivered, None),
        Ok(answer) if answer.status.as_u16() == 410 => {
            return (Next::Gone, Some("the endpoint answered 410 (Gone) and was disabled".into()));
        }
        Ok(answer) if answer.status.is_redirection() => (
            format!("the endpoint answered {}; redirects are not followed", answer.status.as_u16()),
            retry_after(answer),
        ),
        Ok(answer) => (format!("the endpoint answered {}", answer.status.as_u16()), retry_after(answer)),
        Err(error) => (error.to_string(), None),
    };
    let Some(delay) = DELAYS.get(failures) else { return (Next::GivenUp, Some(error)) };
    let delay = f64::from(*delay) * (1.0 + JITTER * (2.0 * roll - 1.0));
    // `Retry-After` may make the delay longer, never shorter, or the attempts would be used up too soon.
    (Next::Again(delay.max(wait.unwrap_or_default().as_secs_f64())), Some(error))
}

/// Parses `Retry-After`: seconds, or a date, which is compared with the response's own `Date` if it has one.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
    let text = header("retry-after")?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let now = header("date").and_then(|date| httpdate::parse_http_date(date).ok());
            let until = httpdate::parse_http_date(text).ok()?;
            until.duration_since(now.unwrap_or_else(SystemTime::now)).ok()?
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Result<Answer, SendError> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Ok(Answer { status: status.try_into().unwrap(), headers, body: bytes::Bytes::new() })
    }

    fn seconds(sent: &Result<Answer, SendError>, failures: usize, roll: f64) -> f64 {
        match judge(sent, failures, roll).0 {
            Next::Again(seconds) => seconds,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ten_attempts_are_made_within_seventy_five_hours() {
        let failed = answer(500, &[]);
        let waits: Vec<f64> = (0..DELAYS.len()).map(|failures| seconds(&failed, failures, 0.5)).collect();
        let hours = waits.iter().sum::<f64>() / 3600.0;
        assert!((75.0..76.0).contains(&hours), "{hours}");
        assert!(waits.is_sorted());
        assert_eq!(judge(&failed, DELAYS.len(), 0.5), (Next::GivenUp, Some("the endpoint answered 500".into())));
    }

    #[test]
    fn a_delay_is_off_by_a_tenth_at_most() {
        let failed = answer(500, &[]);
        assert!((seconds(&failed, 1, 0.0) - 270.0).abs() < 1e-6);
        assert!((seconds(&failed, 1, 1.0) - 330.0).abs() < 1e-6);
    }

    #[test]
    fn retry_after_makes_a_wait_longer_and_never_shorter() {
        assert!((seconds(&answer(503, &[("retry-after", "60")]), 0, 0.5) - 60.0).abs() < 1e-6);
        assert!((seconds(&answer(429, &[("retry-after", "1")]), 1, 0.5) - 300.0).abs() < 1e-6);
        assert!((seconds(&answer(503, &[("retry-after", "999999999")]), 0, 0.5) - 86_400.0).abs() < 1e-6);
        assert!((seconds(&answer(503, &[("retry-after", "soon")]), 0, 0.5) - 5.0).abs() < 1e-6);
        let dates = [("retry-after", "Tue, 24 Nov 2026 12:02:00 GMT"), ("date", "Tue, 24 Nov 2026 12:00:00 GMT")];
        assert!((seconds(&answer(503, &dates), 0, 0.5) - 120.0).abs() < 1e-6);
    }

    #[test]
    fn only_2xx_is_an_arrival_and_410_is_the_end() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judge(&answer(status, &[]), 0, 0.5), (Next::Delivered, None));
        }
        for status in [301, 302, 304, 307, 308, 400, 401, 404, 409, 429, 500, 502, 503] {
            assert!(matches!(judge(&answer(status, &[]), 0, 0.5), (Next::Again(_), Some(_))), "{status}");
        }
        assert_eq!(judge(&answer(410, &[]), 0, 0.5).0, Next::Gone);
        let (_, error) = judge(&answer(301, &[]), 0, 0.5);
        assert_eq!(error.as_deref(), Some("the endpoint answered 301; redirects are not followed"));
    }
}
