//! The attempts at one request: at the replicas of its pool, one after another, within one time limit.

use std::time::Duration;

use attune_domain::{id::ReplicaId, serve::MOST_QUEUE_SECONDS};
use tokio::time::{Instant, timeout_at};

/// The attempts at a request. A replica limits the time for which a request waits there; this limits the time over all
/// of them, from the first attempt on.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    until: Option<Instant>,
    busy: Vec<ReplicaId>,
}

impl Attempts {
    /// Performs an attempt. Returns `None` if the time is over before it is completed. The time of the first replica is
    /// its own.
    pub(crate) async fn perform<T>(&mut self, attempt: impl Future<Output = T>) -> Option<T> {
        let limit = Duration::from_secs(MOST_QUEUE_SECONDS);
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        if self.busy.is_empty() {
            return Some(attempt.await);
        }
        timeout_at(until, attempt).await.ok()
    }

    /// Notes that a replica refused the request because it has too many.
    pub(crate) fn refused(&mut self, id: ReplicaId) {
        self.busy.push(id);
    }

    /// Returns the replicas that refused the request.
    pub(crate) fn busy(&self) -> &[ReplicaId] {
        &self.busy
    }

    /// Returns whether there is time for another attempt.
    pub(crate) fn has_time(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn limit_of_the_wait_at_all_replicas_together() {
        let (mut attempts, began) = (Attempts::default(), Instant::now());
        let limit = Duration::from_secs(MOST_QUEUE_SECONDS);
        assert_eq!(attempts.perform(sleep(limit / 2)).await, Some(()));
        attempts.refused(ReplicaId::new(Uuid::from_u128(1)));
        assert!(attempts.has_time());
        assert_eq!(attempts.perform(pending::<()>()).await, None, "the second replica gets what is left");
        assert!(began.elapsed() < limit + Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(!attempts.has_time());
        assert_eq!(attempts.busy().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_replica_limits_itself() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.perform(sleep(Duration::from_secs(2 * MOST_QUEUE_SECONDS))).await, Some(()));
        assert_eq!(attempts.perform(ready(7)).await, Some(7), "a replica that ended is not a busy one");
    }
}
