//! Slots for work that renders and tokenizes rows for a request: previews, reports and estimates. The work runs on
//! threads of its own. A project has one slot at a time, so that projects take turns, and work stops when its request
//! has ended or timed out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use attune_dataprep::rows::Stop;
use attune_domain::id::ProjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// The maximum number of concurrent tasks of all projects.
pub const TEXT_AT_ONCE: usize = 2;

/// The maximum number of tasks of a project, including those that wait.
const TEXT_PER_PROJECT: usize = 16;

/// The time limit for a request's task, waiting included.
const TEXT_PATIENCE: Duration = Duration::from_secs(120);

/// The slots of all projects.
#[derive(Debug)]
pub struct TextPlaces {
    all: Arc<Semaphore>,
    projects: Mutex<HashMap<ProjectId, Weak<Semaphore>>>,
    patience: Duration,
}

/// A slot. The working thread holds it, not the request, so it is freed only when that thread is done.
#[derive(Debug)]
pub struct TextPlace {
    _all: OwnedSemaphorePermit,
    _project: OwnedSemaphorePermit,
    stop: Stop,
}

/// A guard that sets its [`Stop`] when the request has ended or timed out.
struct Wanted(Stop);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl TextPlace {
    /// Returns the stop signal, which the work checks before each row.
    #[must_use]
    pub const fn stop(&self) -> &Stop {
        &self.stop
    }
}

impl TextPlaces {
    /// Creates this number of free slots.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(places)), projects: Mutex::default(), patience: TEXT_PATIENCE }
    }

    /// Runs `work` for a project in a slot of its own.
    ///
    /// # Errors
    /// [`ApiError::Busy`]: the time limit has passed, or too many requests of the project are waiting. Any error of the
    /// work.
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
        let done = done.await.map_err(|_| busy(&format!("was not completed within {} s", self.patience.as_secs())))?;
        drop(wanted);
        done
    }

    async fn enter(&self, project: ProjectId, stop: Stop) -> Result<TextPlace, ApiError> {
        let own = self.of_project(project);
        // Each waiting or working request holds a reference, and so does this one.
        if Arc::strong_count(&own) > TEXT_PER_PROJECT {
            return Err(busy(&format!(
                "was not started: {TEXT_PER_PROJECT} other requests of this project are waiting"
            )));
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
            "This request tokenizes the files' rows, which {why}. Retry later, or with smaller files. A job \
             counts tokens without this limit, and can be cancelled before it trains."
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
    async fn limit_what_takes_too_long_is_stopped() {
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
