//! A provider with time limits, so that one that does not answer holds back the work for the others by seconds only.

use std::{future::Future, sync::Arc, time::Duration};

use attune_domain::{offer::Offer, serve::Engine};
use futures::future::BoxFuture;
use tokio::{sync::Mutex, task::JoinHandle, time::timeout};

use crate::{
    error::{Late, ProviderError},
    providers::provider::{Launch, Process, Provider},
};

/// The time limits of one provider.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimits {
    /// The time that a caller waits for the offers, or for the list of processes.
    pub(crate) wait: Duration,
    /// The time after which such a query is abandoned. Until then, no other one begins.
    pub(crate) answer: Duration,
    /// The time after which a launch or a stop is abandoned.
    pub(crate) action: Duration,
}

impl TimeLimits {
    /// Returns the limits of a provider.
    pub(crate) fn of(provider: &dyn Provider) -> Self {
        let answer = provider.answer_limit();
        // A launch or a stop at a cluster may be several commands.
        Self { wait: Duration::from_secs(3), answer, action: 2 * answer + Duration::from_secs(10) }
    }
}

/// A query that may continue when its caller waits no longer. The provider may keep its answer for the next one.
type Query<T> = Mutex<Option<JoinHandle<Result<T, ProviderError>>>>;

/// A provider whose calls have time limits.
pub(crate) struct Limited {
    inner: Arc<dyn Provider>,
    limits: TimeLimits,
    offers: Query<Vec<Offer>>,
    list: Query<Vec<Process>>,
}

impl Limited {
    /// Limits the calls of `inner`.
    pub(crate) fn new(inner: Arc<dyn Provider>, limits: TimeLimits) -> Self {
        Self { inner, limits, offers: Mutex::default(), list: Mutex::default() }
    }

    /// Waits for the answer to a new query. The answer to an earlier one is dropped: it may lack what was launched
    /// since.
    async fn answer<T: Send + 'static>(
        &self,
        query: &Query<T>,
        action: &'static str,
        call: impl Future<Output = Result<T, ProviderError>> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let TimeLimits { wait, answer, .. } = self.limits;
        let mut running = query.lock().await;
        if running.as_ref().is_some_and(|earlier| !earlier.is_finished()) {
            return Err(late(action, wait));
        }
        let task = running.insert(tokio::spawn(within(answer, action.to_owned(), call)));
        let Ok(answered) = timeout(wait, task).await else { return Err(late(action, wait)) };
        *running = None;
        answered.unwrap_or_else(|panic| Err(ProviderError { action: action.to_owned(), cause: panic.into() }))
    }
}

fn late(action: &str, limit: Duration) -> ProviderError {
    ProviderError { action: action.to_owned(), cause: Box::new(Late { seconds: limit.as_secs() }) }
}

async fn within<T>(
    limit: Duration,
    action: String,
    call: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    timeout(limit, call).await.unwrap_or_else(|_| Err(late(&action, limit)))
}

impl Provider for Limited {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn outlives_scheduler(&self) -> bool {
        self.inner.outlives_scheduler()
    }

    fn answer_limit(&self) -> Duration {
        self.limits.answer
    }

    fn configured_offers(&self) -> Vec<Offer> {
        self.inner.configured_offers()
    }

    fn engine_refusal(&self, engine: Engine) -> Option<String> {
        self.inner.engine_refusal(engine)
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        let inner = self.inner.clone();
        Box::pin(self.answer(&self.offers, "listing the offers", async move { inner.offers().await }))
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        let action = format!("starting {}", launch.program.name());
        Box::pin(within(self.limits.action, action, self.inner.launch(launch)))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        let inner = self.inner.clone();
        Box::pin(self.answer(&self.list, "listing the processes", async move { inner.list().await }))
    }

    fn recorded(&self, handles: Vec<String>) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        // The caller holds back all placements.
        Box::pin(within(self.limits.wait, "reading the record of ended processes".into(), self.inner.recorded(handles)))
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(within(self.limits.action, format!("stopping {handle}"), self.inner.stop(handle)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use attune_process::error_chain::chain;

    use super::*;

    /// A provider that does not answer while it hangs, and counts the queries.
    #[derive(Default)]
    struct Hangs {
        is_hanging: AtomicBool,
        queries: AtomicUsize,
    }

    impl Provider for Hangs {
        fn name(&self) -> &'static str {
            "hangs"
        }

        fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
            Box::pin(async { Ok(launch.name) })
        }

        fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
            Box::pin(async {
                self.queries.fetch_add(1, Ordering::Relaxed);
                if self.is_hanging.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                Ok(Vec::new())
            })
        }

        fn stop(&self, _handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn a_provider_that_hangs_is_waited_for_once_until_its_query_is_abandoned() {
        let hangs = Arc::new(Hangs::default());
        let millis = Duration::from_millis;
        let limits = TimeLimits { wait: millis(100), answer: millis(600), action: millis(100) };
        let limited = Limited::new(hangs.clone(), limits);
        hangs.is_hanging.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let error = limited.list().await.unwrap_err();
            assert_eq!(chain(&error), "listing the processes failed: it did not answer within 0 s");
            assert!(error.is_passing() && error.is_late());
        }
        assert_eq!(hangs.queries.load(Ordering::Relaxed), 1, "the first query continues");
        assert!(limited.offers().await.is_ok(), "another query");
        assert!(limited.stop("run_1").await.is_err());

        hangs.is_hanging.store(false, Ordering::Relaxed);
        tokio::time::sleep(millis(700)).await;
        assert!(limited.list().await.is_ok());
        assert_eq!(hangs.queries.load(Ordering::Relaxed), 2);
    }
}
