//! The time that a slow peer may take: a grace period, and the time that its bytes would take at the minimum rate. Only
//! the time that the server waits for the peer counts, so a peer that waits for the server is never too slow.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The time accounting of one direction of a connection.
#[derive(Debug)]
pub(crate) struct MinRate {
    grace: Duration,
    least_bytes_per_second: u64,
    bytes: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl MinRate {
    pub(crate) fn new(grace: Duration, least_bytes_per_second: u64) -> Self {
        Self { grace, least_bytes_per_second, bytes: 0, waited: Duration::ZERO, waiting: None }
    }

    /// Records that the server waits for the peer. Ready when it has waited for too long.
    pub(crate) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let allowed = self.grace + Duration::from_secs(self.bytes / self.least_bytes_per_second.max(1));
        let left = allowed.saturating_sub(self.waited);
        let (_, end) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(now + left)))
        });
        end.as_mut().poll(cx)
    }

    /// Records that the peer has sent or received `bytes` bytes.
    pub(crate) fn moved(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        self.bytes += bytes as u64;
    }
}
