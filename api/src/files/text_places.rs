//! Places for work that renders and tokenises at a request's bidding: previews, reports and estimates. It runs on threads
//! of its own; a project has one place at a time, so those of others come in turn, and whoever has left or waited too
//! long does not go on.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use attune_domain::id::ProjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// Pieces of such work at the same time, of all projects together.
pub const TEXT_AT_ONCE: usize = 2;

/// Pieces of such work that a project may have, those that wait counted.
const TEXT_PER_PROJECT: usize = 16;

/// How long a request may wait for its place and then work.
const TEXT_PATIENCE: Duration = Duration::from_secs(120);

/// All places.
#[derive(Debug)]
pub struct TextPlaces {
    all: Arc<Semaphore>,
    projects: Mutex<HashMap<ProjectId, Weak<Semaphore>>>,
    patience: Duration,
}

/// A place. The thread that works holds it, not the request: it is free once nothing works there any more.
#[derive(Debug)]
pub struct TextPlace {
    _all: OwnedSemaphorePermit,
    _project: OwnedSemaphorePermit,
    stop: Stop,
}

/// Whether the work is still wanted.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether nobody waits for the outcome any more.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets its [`Stop`] when the request is gone or has waited too long.
struct Wanted(Stop);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl TextPlace {
    /// Whether the work is still wanted: to be asked before each row.
    #[must_use]
    pub const fn stop(&self) -> &Stop {
        &self.stop
    }
}

impl TextPlaces {
    /// So many places, all free.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(places)), projects: Mutex::default(), patience: TEXT_PATIENCE }
    }

    /// Does `work` for a project in a place of its own.
    ///
    /// # Errors
    /// [`ApiError::Busy`]: it took too long, or others of the project wait already. What the work fails with.
    pub async fn work<T, F>(&self, project: ProjectId, work: impl FnOnce(TextPlace) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let wanted = Wanted(Stop::default());
        let stop = wanted.0.clone();
        let done = tokio::time::timeout(self.patience, async {
            let place = self.enter(project, stop).await?;
            work(place).await
        });
        let done = done.await.map_err(|_| busy(&format!("could not be done within {} s", self.patience.as_secs())))?;
        drop(wanted);
        done
    }

    async fn enter(&self, project: ProjectId, stop: Stop) -> Result<TextPlace, ApiError> {
        let own = self.of_project(project);
        // Those who wait and the one who works hold it, and so does this request.
        if Arc::strong_count(&own) > TEXT_PER_PROJECT {
            return Err(busy(&format!("was not begun: {TEXT_PER_PROJECT} others of this project come first")));
        }
        let own = own.acquire_owned().await.map_err(ApiError::internal)?;
        let all = self.all.clone().acquire_owned().await.map_err(ApiError::internal)?;
        Ok(TextPlace { _all: all, _project: own, stop })
    }

    fn of_project(&self, project: ProjectId) -> Arc<Semaphore> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = projects.get(&project).and_then(Weak::upgrade) {
            return own;
        }
        projects.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(1));
        projects.insert(project, Arc::downgrade(&own));
        own
    }
}

fn busy(why: &str) -> ApiError {
    ApiError::Busy {
        message: format!(
            "The files' rows are turned into tokens for this answer, and that {why}. Try again later, or with smaller \
             files. A job counts without a limit, and can be cancelled before it trains."
        ),
        retry_after_seconds: 30,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(n: u128) -> ProjectId {
        ProjectId::new(uuid::Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn limit_a_project_has_one_place_and_others_come_in_between() {
        let places = Arc::new(TextPlaces::new(TEXT_AT_ONCE));
        let held = places.enter(project(1), Stop::default()).await.unwrap();
        let mut second = Box::pin(places.enter(project(1), Stop::default()));
        assert!(futures::poll!(&mut second).is_pending(), "its own place is taken");
        let other = places.enter(project(2), Stop::default()).await.unwrap();
        drop(held);
        second.await.unwrap();
        drop(other);
    }

    #[tokio::test]
    async fn limit_more_than_so_many_of_a_project_are_sent_away() {
        let places = Arc::new(TextPlaces::new(TEXT_AT_ONCE));
        let held = places.enter(project(1), Stop::default()).await.unwrap();
        let mut waiting: Vec<_> =
            (0..TEXT_PER_PROJECT).map(|_| Box::pin(places.enter(project(1), Stop::default()))).collect();
        let mut refused = 0;
        for each in &mut waiting {
            refused += u32::from(matches!(futures::poll!(each), std::task::Poll::Ready(Err(ApiError::Busy { .. }))));
        }
        assert_eq!(refused, 1);
        drop(held);
    }

    #[tokio::test]
    async fn limit_what_takes_too_long_is_told_to_stop() {
        let places = TextPlaces { patience: Duration::from_millis(20), ..TextPlaces::new(1) };
        let mut seen = None;
        let done: Result<(), ApiError> = places
            .work(project(1), |place| {
                seen = Some(place.stop().clone());
                async move {
                    let _place = place;
                    std::future::pending().await
                }
            })
            .await;
        assert!(matches!(done, Err(ApiError::Busy { .. })));
        assert!(seen.unwrap().is_set());
    }
}
