//! Slots for work that needs much memory or processor time: a limit for all projects, and a lower one for each, so that
//! no project blocks the others.

use std::{
    collections::HashMap,
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attune_domain::id::ProjectId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::error::ApiError;

/// The time for which a request waits for a slot, in seconds.
const PATIENCE_SECONDS: u64 = 30;

/// The minimum number of slots for work that keeps a processor busy: a project holds at most half.
const LEAST_OF_PROCESSORS: usize = 2;

/// The slots for one kind of work.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    of_project: usize,
    projects: Mutex<HashMap<ProjectId, Arc<Semaphore>>>,
    patience: Duration,
}

/// A slot, which is freed when this is dropped.
#[derive(Debug)]
pub struct Place {
    _of_project: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Places {
    /// Creates `all` slots, of which a project holds at most `of_project`.
    #[must_use]
    pub fn new(all: usize, of_project: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            of_project,
            projects: Mutex::default(),
            patience: Duration::from_secs(PATIENCE_SECONDS),
        }
    }

    /// Creates a slot for each processor, of which a project holds at most half.
    #[must_use]
    pub fn of_processors() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let all = processors.max(LEAST_OF_PROCESSORS);
        Self::new(all, all / 2)
    }

    /// Takes a slot for work of the project; waits without end while all are taken. The projects that wait take turns
    /// in so far as each waits for its own slots first.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub async fn wait(&self, project: ProjectId) -> Result<Place, ApiError> {
        let of_project = self.own(project).acquire_owned().await.map_err(ApiError::internal)?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(ApiError::internal)?;
        Ok(Place { _of_project: of_project, _of_all: of_all })
    }

    /// Takes a slot for `work` of the project; waits while all are taken.
    ///
    /// # Errors
    /// [`ApiError::Busy`]: no slot was freed in time.
    pub async fn take(&self, project: ProjectId, work: &str) -> Result<Place, ApiError> {
        timeout(self.patience, self.wait(project)).await.unwrap_or_else(|_| {
            let message = format!("All slots for {work} were in use for {PATIENCE_SECONDS} s. Retry later.");
            Err(ApiError::Busy { message, retry_after_seconds: PATIENCE_SECONDS })
        })
    }

    fn own(&self, project: ProjectId) -> Arc<Semaphore> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        projects.retain(|_, own| Arc::strong_count(own) > 1);
        Arc::clone(projects.entry(project).or_insert_with(|| Arc::new(Semaphore::new(self.of_project))))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn limit_one_project_does_not_hold_all_places() {
        let (one, other) = (ProjectId::new(Uuid::from_u128(1)), ProjectId::new(Uuid::from_u128(2)));
        let places = Places { patience: Duration::from_millis(50), ..Places::new(2, 1) };
        let first = places.take(one, "imports").await.unwrap();
        let refused = places.take(one, "imports").await.unwrap_err();
        assert!(matches!(refused, ApiError::Busy { .. }), "{refused}");
        let theirs = places.take(other, "imports").await.unwrap();
        drop(first);
        let again = places.take(one, "imports").await.unwrap();
        drop((theirs, again));
        assert_eq!(places.projects.lock().unwrap().len(), 2);
        drop(places.take(one, "imports").await.unwrap());
        assert!(places.projects.lock().unwrap().len() <= 1, "what nobody holds is forgotten");
    }

    #[tokio::test]
    async fn limit_a_project_does_not_hold_all_processors_and_waits_for_its_own() {
        let (one, other) = (ProjectId::new(Uuid::from_u128(1)), ProjectId::new(Uuid::from_u128(2)));
        let places = Places::of_processors();
        assert!(places.all.available_permits() >= LEAST_OF_PROCESSORS);
        let mut held = Vec::new();
        for _ in 0..places.of_project {
            held.push(places.wait(one).await.unwrap());
        }
        let mut next = Box::pin(places.wait(one));
        assert!(futures::poll!(&mut next).is_pending(), "its share is in use");
        drop(places.wait(other).await.unwrap());
        drop(held.pop());
        next.await.unwrap();
    }
}
